//! `hsm-kms etcd rewrite-plan`: the commands that make the API server write every object again.

use std::fmt::Write;
use std::str::FromStr;

use clap::Args;

use super::{failure, print};
use crate::cli::CliError;
use crate::exit::ExitCode;

/// Print the commands that rewrite objects, so that the active KEK seals them
#[derive(Args, Debug)]
pub(super) struct RewritePlanArgs {
    /// The cluster's version, such as 1.34
    #[arg(long, value_name = "1.NN")]
    kubernetes: Version,
    /// A resource that is encrypted, as kubectl names it: `secrets`, `widgets.example.com`; may be given more than once
    #[arg(long, value_name = "RESOURCE", default_value = "secrets")]
    resource: Vec<Resource>,
}

/// The minor version of Kubernetes 1.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Version(u32);

impl FromStr for Version {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let minor = text.strip_prefix("1.").and_then(|rest| rest.split('.').next());
        minor.and_then(|minor| minor.parse().ok()).map(Self).ok_or("expected a version such as 1.34")
    }
}

/// A resource and its group, fit for a command line.
#[derive(Clone, Debug)]
struct Resource {
    name: String,
    group: String,
}

impl FromStr for Resource {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, group) = text.split_once('.').unwrap_or((text, ""));
        let fits = |text: &str| text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-'));
        let is_word = |text: &str| !text.starts_with(['.', '-']) && !text.ends_with(['.', '-']);
        let good = !name.is_empty() && fits(text) && !text.ends_with('.') && is_word(name) && is_word(group);
        let parts = Self { name: name.to_owned(), group: group.to_owned() };
        good.then_some(parts).ok_or("expected a resource such as secrets or widgets.example.com")
    }
}

impl Resource {
    fn full(&self) -> String {
        if self.group.is_empty() { self.name.clone() } else { format!("{}.{}", self.name, self.group) }
    }
}

pub(super) fn run(args: &RewritePlanArgs) -> Result<(), CliError> {
    // Data of 1.25 and 1.26 is another format (v2alpha1); 1.27 is the first that reads today's.
    if args.kubernetes.0 < 27 {
        return Err(failure(
            ExitCode::BadUsage,
            format!("there is no plan for Kubernetes 1.{}", args.kubernetes.0),
            "KMS v2 begins with 1.27",
            "upgrade the cluster first",
        ));
    }
    print(plan(args.kubernetes, &args.resource).as_bytes())
}

fn plan(version: Version, resources: &[Resource]) -> String {
    let mut out = String::new();
    let minor = version.0;
    let names: Vec<String> = resources.iter().map(Resource::full).collect();
    let _ = write!(
        out,
        "# Kubernetes 1.{minor}: write {} again, so that the KEK that is active now seals them.\n\
         # Nothing is restarted. Objects can be read and written all the while.\n\
         \n\
         # 1. On EVERY API server: the last key_id that its plugin announced must be the new one\n\
         #    (key_id_hash, as `hsm-kms call status` prints it), for at least 3 minutes.\n\
         kubectl get --raw /metrics --server https://CONTROL-PLANE-NODE:6443 | grep key_id_hash_status_last_timestamp\n\
         \n\
         # 2. {}\n",
        names.join(", "),
        if api(minor).is_some() { "Either by kubectl, with any version:" } else { "Rewrite:" },
    );
    for name in &names {
        let _ = writeln!(out, "kubectl get {name} --all-namespaces -o json | kubectl replace -f -");
    }
    out.push_str(
        "#    \"Conflict\" and \"NotFound\" are harmless: somebody wrote or deleted the object meanwhile.\n\
         #    Any other error: mend it, and run the line again.\n",
    );
    if let Some(api) = api(minor) {
        migrate(&mut out, api, resources);
    }
    out.push_str(
        "\n# 3. The old KEK must have no objects left. Then keep it all the same, for as long as you keep\n\
         #    backups of etcd from before.\n\
         hsm-kms etcd inventory --endpoint https://127.0.0.1:2379 --cacert /etc/kubernetes/pki/etcd/ca.crt \\\n  \
         --cert /etc/kubernetes/pki/etcd/server.crt --cert-key /etc/kubernetes/pki/etcd/server.key\n",
    );
    out
}

/// A version of the API group storagemigration.k8s.io.
#[derive(Clone, Copy)]
struct Api {
    version: &'static str,
    /// What an administrator must switch on.
    switch: Option<&'static str>,
}

/// KEP-4192, and the types in k8s.io/api/storagemigration: alpha 1.30, beta 1.35 but off, on by itself from 1.37.
fn api(minor: u32) -> Option<Api> {
    match minor {
        ..30 => None,
        30..35 => Some(Api {
            version: "v1alpha1",
            switch: Some(
                "kube-apiserver: --runtime-config=storagemigration.k8s.io/v1alpha1=true\n\
                 #      and --feature-gates=StorageVersionMigrator=true,InformerResourceVersion=true there\n\
                 #      and on kube-controller-manager",
            ),
        }),
        35..37 => Some(Api {
            version: "v1beta1",
            switch: Some(
                "kube-apiserver: --runtime-config=storagemigration.k8s.io/v1beta1=true\n\
                 #      and --feature-gates=StorageVersionMigrator=true there and on kube-controller-manager",
            ),
        }),
        _ => Some(Api { version: "v1", switch: None }),
    }
}

fn migrate(out: &mut String, api: Api, resources: &[Resource]) {
    let Api { version, switch } = api;
    let _ = write!(
        out,
        "\n#    Or by StorageVersionMigration ({version}), which the control plane carries out by itself.\n\
         #    It is there if this prints something:\n\
         kubectl get --raw /apis/storagemigration.k8s.io/{version}\n"
    );
    if let Some(switch) = switch {
        let _ = writeln!(out, "#    In this version it is off by default. It needs, on\n#      {switch}.");
    }
    for resource in resources {
        let name = format!("hsm-kms-{}", resource.full());
        let object = format!("storageversionmigrations.{version}.storagemigration.k8s.io {name}");
        let Resource { name: plural, group } = resource;
        let fields = match (version, group.as_str()) {
            ("v1alpha1", "") => format!("    group: \"\"\n    version: v1\n    resource: {plural}"),
            ("v1alpha1", group) => format!(
                "    group: {group}\n    version: $(kubectl get --raw /apis/{group} | sed 's/.*\"preferredVersion\":{{[^}}]*\"version\":\"\\([^\"]*\\)\".*/\\1/')\n    resource: {plural}"
            ),
            (_, "") => format!("    group: \"\"\n    resource: {plural}"),
            (_, group) => format!("    group: {group}\n    resource: {plural}"),
        };
        let _ = write!(
            out,
            "kubectl delete {object} --ignore-not-found\n\
             kubectl create -f - <<END\n\
             apiVersion: storagemigration.k8s.io/{version}\n\
             kind: StorageVersionMigration\n\
             metadata:\n  name: {name}\n\
             spec:\n  resource:\n{fields}\n\
             END\n\
             kubectl wait {object} --for=condition=Succeeded --timeout=24h\n"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(version: &str, resources: &[&str]) -> String {
        let resources: Vec<Resource> = resources.iter().map(|resource| resource.parse().unwrap()).collect();
        plan(version.parse().unwrap(), &resources)
    }

    #[test]
    fn the_api_follows_the_version() {
        for (version, served) in
            [("1.27", None), ("1.29.3", None), ("1.30", Some("v1alpha1")), ("v1.34", Some("v1alpha1"))]
                .into_iter()
                .chain([
                    ("1.35", Some("v1beta1")),
                    ("1.36", Some("v1beta1")),
                    ("1.37", Some("v1")),
                    ("1.40", Some("v1")),
                ])
        {
            let plan = of(version, &["secrets"]);
            assert!(plan.contains("\nkubectl get secrets --all-namespaces -o json | kubectl replace -f -\n"));
            match served {
                None => assert!(!plan.contains("StorageVersionMigration")),
                Some(api) => assert!(plan.contains(&format!("apiVersion: storagemigration.k8s.io/{api}\n")), "{plan}"),
            }
            assert_eq!(plan.contains("    version: "), served == Some("v1alpha1"));
            assert_eq!(plan.contains("off by default"), matches!(served, Some("v1alpha1" | "v1beta1")));
        }
    }

    #[test]
    fn custom_resources_have_their_group() {
        let plan = of("1.37", &["secrets", "widgets.a.example.com"]);
        assert!(plan.contains("kubectl get widgets.a.example.com --all-namespaces"));
        assert!(plan.contains("    group: a.example.com\n    resource: widgets\n"));
        assert!(plan.contains("    group: \"\"\n    resource: secrets\n"));
    }

    #[test]
    fn nothing_that_a_shell_takes_for_more_gets_in() {
        for wrong in ["", ".", "a.", "-a", "a b", "a;b", "$(x)", "A", "a/b", "a.-b", "a\n"] {
            assert!(wrong.parse::<Resource>().is_err(), "{wrong:?}");
        }
        for wrong in ["", "1", "2.1", "1.x", "1.-3", "1.34-rc1x y"] {
            assert!(wrong.parse::<Version>().is_err(), "{wrong:?}");
        }
    }
}
