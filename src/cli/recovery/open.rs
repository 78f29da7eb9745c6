//! `hsm-kms recovery open`: one value, opened with a recovery key alone.

use clap::Args;

use super::failure;
use super::private_key::PrivateKeyArgs;
use super::sealed;
use crate::cli::CliError;
use crate::cli::etcd::decrypt::{Output, Sealed};
use crate::cli::etcd::store::StoreArgs;
use crate::cluster::Cluster;
use crate::exit::ExitCode;
use crate::key_id::KeyId;

/// Open one value with a recovery key, without plugin and HSM
#[derive(Args, Debug)]
pub(super) struct OpenArgs {
    /// The whole key of the object, such as /registry/secrets/NAMESPACE/NAME
    #[arg(long, value_name = "KEY")]
    object: String,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    key: PrivateKeyArgs,
    /// The cluster's name, as the KEK's record has it
    #[arg(long, value_name = "NAME")]
    cluster: Cluster,
    /// What the API server's keys begin with; tells a wrong prefix from a changed value
    #[arg(long, value_name = "PREFIX", default_value = "/registry/")]
    prefix: String,
    /// Write the object itself to standard output. Without this, only its size and digest are shown
    #[arg(long, value_name = "FORM")]
    output: Option<Output>,
}

pub(super) fn run(args: &OpenArgs) -> Result<(), CliError> {
    let key = args.key.open()?;
    let recipient = key.recipient()?;
    let value = Sealed::find(&args.store.store(), &args.object)?;
    let refused = |why: String| {
        let hint =
            "give the key that the KEK's record names, --cluster as the record has it, or another copy of the store";
        failure(ExitCode::DoesNotHold, format!("the seed of {} does not open", args.object), why, hint)
    };
    let key_id = KeyId::parse(&value.object.key_id).ok_or_else(|| refused("hsm-kms did not seal it".to_owned()))?;
    let source = sealed::open(&key, &recipient, &args.cluster, &key_id, &value.object.annotations)
        .map_err(|why| refused(why.to_string()))?;
    value.show(&source, &args.prefix, args.output)
}
