//! `hsm-kms recovery keygen`.

use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use clap::{Args, builder::TypedValueParser};
use zeroize::Zeroizing;

use super::token::{HsmKey, NO_OAEP, OfflineSession, OfflineToken, public_half, refused};
use super::{failure, file, print, private_key};
use crate::cli::CliError;
use crate::exit::ExitCode;
use crate::key_id::KeyId;
use crate::pkcs11::{RsaPair, Session};
use crate::record::UtcTime;
use crate::recovery::{Binding, HybridKey, Recipient, RecoveryBlob, Scheme};
use crate::secret::Plaintext;

/// Make a recovery key: the private half for a safe, the public half for the ceremony's plan
#[derive(Args, Debug)]
pub(super) struct KeygenArgs {
    /// Where the private half goes, readable by this user alone; must not exist. Best on a medium that is taken out
    #[arg(long, value_name = "FILE", required_unless_present = "token", conflicts_with = "token")]
    key: Option<PathBuf>,
    /// The file that names an offline HSM (docs/recovery.md): the private half is made there, and stays there
    #[arg(long, value_name = "FILE", requires = "scheme")]
    token: Option<PathBuf>,
    /// What the HSM makes
    #[arg(long, value_parser = rsa_scheme(), requires = "token")]
    scheme: Option<Scheme>,
    /// Where the public half goes; must not exist
    #[arg(long, value_name = "FILE")]
    recipient: PathBuf,
}

pub(super) fn run(args: &KeygenArgs) -> Result<(), CliError> {
    let (private, recipient) = match (&args.key, &args.token, args.scheme) {
        (Some(path), _, _) => (path.display().to_string(), in_software(path, &args.recipient)?),
        (None, Some(path), Some(scheme)) => in_hsm(path, scheme, &args.recipient)?,
        _ => return Err(failure(ExitCode::BadUsage, "no key was made", "no place was named", "add --key or --token")),
    };
    print(&format!(
        "private   {private}\npublic    {}\nscheme    {}\nfingerprint\n{}\n",
        args.recipient.display(),
        recipient.scheme(),
        recipient.fingerprint(),
    ))
}

fn in_software(path: &Path, public: &Path) -> Result<Recipient, CliError> {
    let key = HybridKey::generate()
        .map_err(|error| failure(ExitCode::NotReachable, "no key was made", error.to_string(), "try again"))?;
    let recipient = private_key::recipient_of(&key)?;
    file::check_new(public)?;
    file::write_new(path, 0o600, key_file(&key, &recipient).as_bytes())?;
    file::write_new(public, 0o644, recipient.to_json().as_bytes())?;
    Ok(recipient)
}

/// The text of a file with a private half.
pub(super) fn key_file(key: &HybridKey, recipient: &Recipient) -> Zeroizing<String> {
    Zeroizing::new(format!(
        "# hsm-kms recovery key. Whoever has it can read every secret of the cluster, from etcd or a backup of it.\n\
         # written {}; fingerprint {}\n{}\n",
        UtcTime::now(),
        recipient.fingerprint(),
        *key.to_text()
    ))
}

/// A pair in the HSM that has opened what was sealed to it, and its public half in the file; or neither.
fn in_hsm(token: &Path, scheme: Scheme, public: &Path) -> Result<(String, Recipient), CliError> {
    let token = OfflineToken::load(token)?;
    file::check_new(public)?;
    let OfflineSession { session, label, module } = token.log_in()?;
    if session.count_pairs(&label).map_err(|error| refused(&error))? != 0 {
        let why = format!("there is a key with the label {label:?} on the token");
        return Err(failure(
            ExitCode::BadUsage,
            "no key was made",
            why,
            "choose a label that is free: `key: { label: ... }`",
        ));
    }
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|error| failure(ExitCode::NotReachable, "no key was made", error.to_string(), "try again"))?;
    let bits = scheme.modulus_bits().unwrap_or_default();
    let pair = session.generate_rsa_pair(&label, &id, bits).map_err(|error| refused(&error))?;
    let recipient = match public_half(&session, pair.private) {
        Ok(recipient) => recipient,
        Err(error) => return Err(undone(&session, pair, error)),
    };
    let key = HsmKey::new(session, pair.private, recipient);
    let proved = prove(&key, pair, scheme, &module);
    let written = proved.and_then(|()| file::write_new(public, 0o644, key.recipient().to_json().as_bytes()));
    match written {
        Ok(()) => Ok((format!("{label} in {module}"), key.recipient().clone())),
        Err(error) => Err(undone(key.session(), pair, error)),
    }
}

/// The key is what was asked for, and opens what is sealed to it.
fn prove(key: &HsmKey, pair: RsaPair, scheme: Scheme, module: &str) -> Result<(), CliError> {
    let fail = |why: String, hint: &str| Err(failure(ExitCode::DoesNotHold, "the new key was not kept", why, hint));
    let deviations = key.session().private_key_deviations(pair.private).map_err(|error| refused(&error))?;
    if !deviations.is_empty() {
        let why = format!("{module} made it otherwise than asked for: {}", deviations.join(", "));
        return fail(why, "choose an HSM that takes the template, or a mode of it that does");
    }
    let recipient = key.recipient();
    if recipient.scheme() != scheme {
        return fail(format!("{module} made a key for {}", recipient.scheme()), "report this to its vendor");
    }
    let binding = Binding::new("keygen", &KeyId::derive("keygen", &[0], "keygen", 1), recipient);
    let mut canary = [0; 32];
    let sealed = getrandom::fill(&mut canary)
        .map_err(|error| error.to_string())
        .and_then(|()| recipient.seal(&Plaintext::new(canary.to_vec()), &binding).map_err(|error| error.to_string()));
    let opened = sealed.and_then(|sealed| {
        let blob = RecoveryBlob::parse(&sealed).map_err(|error| error.to_string())?;
        key.open(&blob, &binding)
    });
    match opened {
        Ok(opened) if opened.expose() == canary => Ok(()),
        Ok(_) => fail(format!("{module} opened another text than was sealed"), "report this to its vendor"),
        Err(why) => fail(format!("{module} does not open RSA-OAEP with SHA-256 and MGF1 with SHA-256: {why}"), NO_OAEP),
    }
}

/// Destroys both halves.
fn undone(session: &Session, pair: RsaPair, cause: CliError) -> CliError {
    let destroyed = [pair.private, pair.public].map(|key| session.destroy(key));
    match destroyed.into_iter().find_map(Result::err) {
        None => cause,
        Some(error) => CliError {
            what: "the new key was not kept, and is still on the token".to_owned(),
            hint: format!("remove it with the vendor's tool ({error}); {}", cause.hint),
            ..cause
        },
    }
}

fn rsa_scheme() -> impl TypedValueParser<Value = Scheme> {
    let words = || Scheme::ALL.into_iter().filter(|scheme| scheme.modulus_bits().is_some());
    PossibleValuesParser::new(words().map(Scheme::word))
        .try_map(move |word| words().find(|scheme| scheme.word() == word).ok_or("no scheme of an HSM"))
}
