//! `hsm-kms call`: one KMS v2 request to a running plugin, as kube-apiserver would send it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use data_encoding::{BASE64, HEXLOWER};
use prost::bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tonic::{Code, Request};

use super::CliError;
use crate::exit::ExitCode;
use crate::key_id;
use crate::kms::client::{self, Client};
use crate::kms::proto::{DecryptRequest, EncryptRequest, StatusRequest, StatusResponse};

/// Call a running plugin the way the API server does
#[derive(Args, Debug)]
pub(super) struct CallArgs {
    #[command(subcommand)]
    method: Method,
}

#[derive(Debug, Subcommand)]
enum Method {
    /// Shows the plugin's version, health and current `key_id`; ends with 1 if kube-apiserver would call it unhealthy.
    Status {
        #[command(flatten)]
        target: Target,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Seals the bytes on standard input; prints one JSON object with ciphertext, `key_id` and annotations.
    Encrypt {
        #[command(flatten)]
        target: Target,
        /// Correlation id for the plugin's log [default: a random one].
        #[arg(long)]
        uid: Option<String>,
    },
    /// Opens the JSON object that `encrypt` printed, from standard input; writes the plaintext as it is.
    Decrypt {
        #[command(flatten)]
        target: Target,
        /// Correlation id for the plugin's log [default: a random one].
        #[arg(long)]
        uid: Option<String>,
    },
}

/// A running plugin.
#[derive(Args, Debug)]
pub(super) struct Target {
    /// The plugin's Unix socket.
    #[arg(long, value_name = "PATH")]
    pub(super) socket: PathBuf,
    /// Seconds to wait for the socket and the answer together, like a KMS provider's `timeout`.
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(super) timeout: u64,
}

/// Runs the command on standard input and output, in a runtime of its own.
pub(super) fn run(args: CallArgs) -> Result<(), CliError> {
    execute(args.method, &mut std::io::stdin().lock(), &mut std::io::stdout().lock())
}

fn execute(method: Method, input: &mut impl Read, output: &mut impl Write) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|fault| {
        failure(ExitCode::NotReachable, "cannot start", fault.to_string(), "check limits on open files and memory")
    })?;
    match method {
        Method::Status { target, json } => {
            let answer = runtime
                .block_on(target.call(StatusRequest {}, async |mut client, request| client.status(request).await))?;
            show_status(&answer, json, output)
        }
        Method::Encrypt { target, uid } => {
            let plaintext = Bytes::from(read_input(input)?);
            let request = EncryptRequest { plaintext, uid: uid.unwrap_or_else(random_uid) };
            let answer =
                runtime.block_on(target.call(request, async |mut client, request| client.encrypt(request).await))?;
            let annotations = answer.annotations.iter().map(|(name, value)| (name.clone(), BASE64.encode(value)));
            let sealed = Sealed {
                ciphertext: BASE64.encode(&answer.ciphertext),
                key_id: answer.key_id,
                annotations: annotations.collect(),
            };
            write_json(&sealed, output)
        }
        Method::Decrypt { target, uid } => {
            let request = read_sealed(input, uid.unwrap_or_else(random_uid))?;
            let answer =
                runtime.block_on(target.call(request, async |mut client, request| client.decrypt(request).await))?;
            write_output(&answer.plaintext, output)
        }
    }
}

/// What `encrypt` prints and `decrypt` reads; bytes are base64 (RFC 4648 section 4).
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    ciphertext: String,
    key_id: String,
    annotations: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct StatusReport<'a> {
    version: &'a str,
    healthz: &'a str,
    key_id: &'a str,
    key_id_hash: String,
}

impl Target {
    /// Connects and calls within one deadline, which travels as `grpc-timeout`.
    pub(super) async fn call<M, R>(
        &self,
        message: M,
        method: impl AsyncFnOnce(Client, Request<M>) -> Result<tonic::Response<R>, tonic::Status>,
    ) -> Result<R, CliError> {
        let timeout = Duration::from_secs(self.timeout);
        let deadline = Instant::now() + timeout;
        let client = client::connect(&self.socket, timeout).await.map_err(|error| self.no_connection(&error))?;
        let mut request = Request::new(message);
        request.set_timeout(deadline.saturating_duration_since(Instant::now()));
        let answer = method(client, request).await;
        answer.map(tonic::Response::into_inner).map_err(|status| self.no_success(&status))
    }

    fn no_connection(&self, error: &client::ConnectError) -> CliError {
        failure(
            ExitCode::NotReachable,
            format!("cannot reach a plugin on {}", self.socket.display()),
            format!("{} (tried for {} s)", error.last, self.timeout),
            "check that `hsm-kms serve` runs with this socket path, and that this user may connect to it",
        )
    }

    fn no_success(&self, status: &tonic::Status) -> CliError {
        let socket = self.socket.display();
        // The code as kube-apiserver's metrics print it (grpc_status_code).
        let code = status.code();
        let why = format!("{code:?}: {}", status.message());
        match code {
            // Cancelled: the transport's word for a deadline that passed.
            Code::DeadlineExceeded | Code::Cancelled => failure(
                ExitCode::NotReachable,
                format!("the plugin on {socket} did not answer in time"),
                format!("{why} (after {} s)", self.timeout),
                "try a longer --timeout; look into the plugin's log",
            ),
            Code::Unavailable => failure(
                ExitCode::NotReachable,
                format!("the plugin on {socket} cannot work now"),
                why,
                "look into the plugin's log; check the way to the HSM",
            ),
            _ => failure(
                ExitCode::DoesNotHold,
                format!("the plugin on {socket} refused the request"),
                why,
                refusal_hint(code),
            ),
        }
    }
}

fn refusal_hint(code: Code) -> &'static str {
    match code {
        Code::InvalidArgument => "check that the input is complete and was sealed by this cluster's plugin",
        Code::NotFound => "check that the plugin has the KEK which this key_id names",
        Code::ResourceExhausted => "the plugin is at its limit: send less, or try again in a moment",
        Code::Unimplemented | Code::Internal | Code::Unknown => {
            "check that the socket belongs to a KMS v2 plugin; look into its log"
        }
        _ => "look into the plugin's log",
    }
}

fn show_status(answer: &StatusResponse, json: bool, output: &mut impl Write) -> Result<(), CliError> {
    let StatusResponse { version, healthz, key_id } = answer;
    let report = StatusReport { version, healthz, key_id, key_id_hash: key_id::hash(key_id) };
    if json {
        write_json(&report, output)?;
    } else {
        let [version, healthz, key_id] = [version, healthz, key_id].map(|text| one_line(text));
        let hash = &report.key_id_hash;
        let table = format!("version  {version}\nhealthz  {healthz}\nkey_id   {key_id}\nhash     {hash}\n");
        write_output(table.as_bytes(), output)?;
    }
    match unhealthy(answer) {
        Some((why, hint)) => Err(failure(ExitCode::DoesNotHold, "the plugin is not healthy", why, hint)),
        None => Ok(()),
    }
}

/// Why kube-apiserver would call this answer unhealthy (apiserver, `encryptionconfig/config.go`).
fn unhealthy(answer: &StatusResponse) -> Option<(String, &'static str)> {
    if answer.healthz != "ok" {
        Some((format!("healthz is not ok: {}", answer.healthz), "look into the plugin's log; check the way to the HSM"))
    } else if !matches!(answer.version.as_str(), "v2" | "v2beta1") {
        Some((format!("version is {:?}, not v2", answer.version), "check that the socket belongs to a KMS v2 plugin"))
    } else if answer.key_id.is_empty() || answer.key_id.len() > KEY_ID_LIMIT {
        let length = answer.key_id.len();
        Some((format!("key_id has {length} bytes, not 1 to {KEY_ID_LIMIT}"), "look into the plugin's log"))
    } else {
        None
    }
}

const KEY_ID_LIMIT: usize = 1024;

/// More than any plugin takes, so that the plugin's own limit can be met.
const INPUT_LIMIT: u64 = 1 << 20;

fn read_input(input: &mut impl Read) -> Result<Vec<u8>, CliError> {
    let mut bytes = Vec::new();
    input
        .take(INPUT_LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| bad_input(error.to_string(), "give the input on standard input"))?;
    if bytes.len() as u64 > INPUT_LIMIT {
        let why = format!("it has more than {INPUT_LIMIT} bytes");
        return Err(bad_input(why, "KMS v2 seals short secrets, such as 32-byte DEK seeds"));
    }
    Ok(bytes)
}

fn read_sealed(input: &mut impl Read, uid: String) -> Result<DecryptRequest, CliError> {
    let hint = "give the JSON object that `hsm-kms call encrypt` printed, unchanged";
    let bytes = read_input(input)?;
    let sealed: Sealed = serde_json::from_slice(&bytes).map_err(|error| bad_input(json_fault(&error), hint))?;
    let decode = |name: &str, text: &str| match BASE64.decode(text.as_bytes()) {
        Ok(bytes) => Ok(Bytes::from(bytes)),
        Err(error) => Err(bad_input(format!("{name} is not base64: {error}"), hint)),
    };
    let ciphertext = decode("ciphertext", &sealed.ciphertext)?;
    let annotations = sealed.annotations.iter().map(|(name, value)| Ok((name.clone(), decode(name, value)?)));
    let annotations = annotations.collect::<Result<_, _>>()?;
    Ok(DecryptRequest { ciphertext, uid, key_id: sealed.key_id, annotations })
}

/// serde's text without the values that it may quote.
fn json_fault(error: &serde_json::Error) -> String {
    let text = error.to_string();
    if error.is_data()
        && !["unknown field", "missing field", "duplicate field"].iter().any(|start| text.starts_with(start))
    {
        return format!("a value of the wrong type at line {} column {}", error.line(), error.column());
    }
    text
}

fn bad_input(why: impl AsRef<str>, hint: &str) -> CliError {
    failure(ExitCode::BadUsage, "cannot use the input", why, hint)
}

fn write_json(value: &impl Serialize, output: &mut impl Write) -> Result<(), CliError> {
    let mut text = serde_json::to_vec(value).map_err(|error| no_output(&error))?;
    text.push(b'\n');
    write_output(&text, output)
}

fn write_output(bytes: &[u8], output: &mut impl Write) -> Result<(), CliError> {
    output.write_all(bytes).and_then(|()| output.flush()).map_err(|error| no_output(&error))
}

fn no_output(fault: &dyn std::error::Error) -> CliError {
    failure(ExitCode::NotReachable, "cannot write the output", fault.to_string(), "check standard output")
}

/// The texts may come from whatever listens on the socket, and go to a terminal: no control characters, one line.
fn failure(code: ExitCode, what: impl AsRef<str>, why: impl AsRef<str>, hint: &str) -> CliError {
    CliError { code, what: one_line(what.as_ref()), why: one_line(why.as_ref()), hint: hint.to_owned() }
}

fn one_line(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

pub(super) fn random_uid() -> String {
    let mut bytes = [0; 16];
    // A uid is for logs only: without randomness it is merely not unique.
    let _ = getrandom::fill(&mut bytes);
    HEXLOWER.encode(&bytes)
}

#[cfg(test)]
mod tests;
