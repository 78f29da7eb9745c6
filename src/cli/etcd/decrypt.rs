//! `hsm-kms etcd decrypt`: one value, opened with the KEK of a running plugin, so that the HSM sees no second login.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use tonic::{Code, Request};

use super::store::{Store, StoreArgs};
use super::{failure, print, runtime, shown, store};
use crate::cli::CliError;
use crate::etcd::Entry;
use crate::etcd::open::{self, OpenError};
use crate::etcd::proto::{EncryptedDekSourceType, EncryptedObject};
use crate::etcd::value::{Form, Stored};
use crate::exit::ExitCode;
use crate::kms::client::{self, Client};
use crate::kms::proto::{DecryptRequest, StatusRequest};
use crate::secret::Plaintext;

/// Open one value with the KEK of a running plugin
#[derive(Args, Debug)]
pub(super) struct DecryptArgs {
    /// The whole key of the object, such as /registry/secrets/NAMESPACE/NAME
    #[arg(long, value_name = "KEY")]
    key: String,
    #[command(flatten)]
    store: StoreArgs,
    /// The plugin's Unix socket
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// What the API server's keys begin with; tells a wrong prefix from a changed value
    #[arg(long, value_name = "PREFIX", default_value = "/registry/")]
    prefix: String,
    /// Write the object itself to standard output. Without this, only its size and digest are shown
    #[arg(long, value_name = "FORM")]
    output: Option<Output>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(in crate::cli) enum Output {
    /// The bytes as the API server stored them: `k8s` and a zero byte before protobuf, or JSON
    Raw,
}

pub(super) fn run(args: &DecryptArgs) -> Result<(), CliError> {
    let sealed = Sealed::find(&args.store.store(), &args.key)?;
    let source = runtime()?.block_on(open_source(args, &sealed.object))?;
    sealed.show(&source, &args.prefix, args.output)
}

/// A value that KMS v2 encrypted.
pub(in crate::cli) struct Sealed {
    entry: Entry,
    provider: String,
    pub(in crate::cli) object: EncryptedObject,
}

impl Sealed {
    /// The newest value of this key.
    pub(in crate::cli) fn find(store: &Store, key: &str) -> Result<Self, CliError> {
        let entry = match store {
            Store::Live(target) => runtime()?.block_on(async {
                let mut client = store::connect(target).await?;
                client.get(key.as_bytes()).await.map_err(|error| store::not_read(target, &error))
            })?,
            Store::Snapshot(file) => find(&store::open(file)?, key.as_bytes())?,
        };
        let entry = entry.ok_or_else(|| {
            failure(
                ExitCode::DoesNotHold,
                format!("there is no {key}"),
                "the store has no such key, or no longer",
                "check the prefix: kubeadm's keys begin with /registry/, OpenShift's with /kubernetes.io/",
            )
        })?;
        let (provider, object) = sealed(&entry)?;
        Ok(Self { entry, provider, object })
    }

    /// Opens it with its opened seed, and prints it, or what it is.
    pub(in crate::cli) fn show(
        &self,
        source: &Plaintext,
        prefix: &str,
        output: Option<Output>,
    ) -> Result<(), CliError> {
        let Self { entry, provider, object } = self;
        let plaintext =
            open::open(&entry.key, object, source).map_err(|error| no_open(prefix, entry, object, source, error))?;
        if let Some(Output::Raw) = output {
            return print(plaintext.expose());
        }
        print(summary(entry, provider, object, &plaintext).as_bytes())
    }
}

/// The newest value that is readable; says so if a newer one may have been lost.
fn find(snapshot: &crate::etcd::snapshot::Snapshot, key: &[u8]) -> Result<Option<Entry>, CliError> {
    let mut found = None;
    let walked = snapshot.newest(&mut |_| {}, &mut |entry| {
        if entry.key == key {
            found = Some(entry);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    });
    match (&found, walked.faults.first()) {
        (Some(entry), Some(fault)) => {
            let revision = entry.mod_revision;
            let _ = writeln!(
                std::io::stderr(),
                "hsm-kms: warning: this value is of revision {revision}; a newer one may be lost: {fault}"
            );
        }
        (None, Some(fault)) => {
            return Err(failure(
                ExitCode::DoesNotHold,
                format!("{} was not found", shown(key)),
                format!("the snapshot is damaged, and it may lie in what is not readable: {fault}"),
                "try another copy of the store",
            ));
        }
        (_, None) => {}
    }
    Ok(found)
}

fn sealed(entry: &Entry) -> Result<(String, EncryptedObject), CliError> {
    let key = shown(&entry.key);
    let refused =
        |why: String, hint: &str| failure(ExitCode::DoesNotHold, format!("{key} cannot be opened"), why, hint);
    let stored = Stored::parse(&entry.value)
        .map_err(|error| refused(error.to_string(), "the value was changed in etcd; try another copy of the store"))?;
    match stored {
        Stored { form: Form::Identity, .. } => Err(refused(
            "it is stored in plain text".to_owned(),
            "read it with etcdctl get; hsm-kms has nothing to open",
        )),
        Stored { object: Some(object), name, .. } => Ok((name, object)),
        Stored { form, name, .. } => Err(refused(
            format!("it is stored by another provider: {form} {name:?}"),
            "its key stands in the API server's EncryptionConfiguration, or with its own plugin",
        )),
    }
}

async fn open_source(args: &DecryptArgs, object: &EncryptedObject) -> Result<Plaintext, CliError> {
    let socket = args.socket.display();
    let mut client = client::connect(&args.socket, LIMIT).await.map_err(|error| {
        failure(
            ExitCode::NotReachable,
            format!("cannot reach a plugin on {socket}"),
            error.last,
            "start `hsm-kms serve` with this KEK's record, and give its socket",
        )
    })?;
    let mut request = Request::new(DecryptRequest {
        ciphertext: object.encrypted_dek_source.clone(),
        uid: "hsm-kms-etcd-decrypt".to_owned(),
        key_id: object.key_id.clone(),
        annotations: object.annotations.clone(),
    });
    request.set_timeout(LIMIT);
    match client.decrypt(request).await {
        Ok(answer) => Ok(Plaintext::new(answer.into_inner().plaintext.into())),
        Err(status) => Err(no_source(args, object, &status, announced(&mut client).await)),
    }
}

/// For the HSM's answer, and before that for the socket.
const LIMIT: Duration = Duration::from_secs(10);

async fn announced(client: &mut Client) -> Option<String> {
    let answer = client.status(StatusRequest {}).await.ok()?.into_inner();
    Some(answer.key_id)
}

fn no_source(
    args: &DecryptArgs,
    object: &EncryptedObject,
    status: &tonic::Status,
    announced: Option<String>,
) -> CliError {
    let what = format!("the seed of {} does not open", args.key);
    let why = format!("{:?}: {}", status.code(), status.message());
    let needed = &object.key_id;
    match status.code() {
        Code::NotFound => {
            let has = announced.map_or(String::new(), |key_id| format!("; this plugin announces {key_id}"));
            failure(
                ExitCode::DoesNotHold,
                what,
                format!("it was sealed by another KEK or for another cluster: it needs {needed}{has}"),
                "give the socket of a plugin that serves that KEK's record for that cluster",
            )
        }
        Code::InvalidArgument => failure(
            ExitCode::DoesNotHold,
            what,
            format!("the plugin has its KEK, {needed}, and refuses: {why}"),
            "the value was changed in etcd; try another copy of the store",
        ),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::ResourceExhausted => {
            failure(ExitCode::NotReachable, what, why, "look into the plugin's log; check the way to the HSM")
        }
        _ => failure(ExitCode::DoesNotHold, what, why, "look into the plugin's log"),
    }
}

fn no_open(prefix: &str, entry: &Entry, object: &EncryptedObject, source: &Plaintext, error: OpenError) -> CliError {
    let original = open::original_key(&entry.key, prefix.as_bytes(), object, source);
    let (why, hint) = match (error, original) {
        (OpenError::Authentication, Some(key)) => (
            format!("the prefix is wrong: the API server wrote it as {}", shown(&key)),
            "the value lies where no API server reads it; restore it under the key that it was written with",
        ),
        (OpenError::Authentication, None) => (
            format!("its seed opened, but {error}"),
            "it was moved within etcd, or damaged; try another copy of the store",
        ),
        (error, _) => (error.to_string(), "the value was changed in etcd; try another copy of the store"),
    };
    failure(ExitCode::DoesNotHold, format!("{} does not open", shown(&entry.key)), why, hint)
}

fn summary(entry: &Entry, provider: &str, object: &EncryptedObject, plaintext: &Plaintext) -> String {
    let source = match object.encrypted_dek_source_type() {
        EncryptedDekSourceType::HkdfSha256XnonceAesGcmSeed => "seed (Kubernetes 1.29 and later)",
        EncryptedDekSourceType::AesGcmKey => "key (Kubernetes 1.27 and 1.28)",
    };
    let encoding = match plaintext.expose() {
        [b'k', b'8', b's', 0, ..] => "protobuf",
        [b'{', ..] => "JSON",
        _ => "unknown",
    };
    format!(
        "opened    {}\nrevision  {}\nprovider  {provider}\nkey_id    {}\nsealed    {source}\nencoding  {encoding}\nbytes     {}\nsha256    {}\n",
        shown(&entry.key),
        entry.mod_revision,
        shown(object.key_id.as_bytes()),
        plaintext.len(),
        HEXLOWER.encode(&Sha256::digest(plaintext.expose())),
    )
}
