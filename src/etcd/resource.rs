//! Which resource a key of the store belongs to.

use super::value::printable;

/// The resource of a key, as `kubectl` names it: `secrets`, `widgets.example.com`.
///
/// After the prefix stands the resource, or for custom and aggregated resources their group and then the resource
/// (apiserver, `registry/generic/registry/store.go`). Built-in groups are left out there; five resources have other names there
/// (kubernetes, `pkg/kubeapiserver/default_storage_factory_builder.go`).
/// A key that does not begin with the prefix counts as `(other)`.
pub fn resource(key: &[u8], prefix: &[u8]) -> String {
    let Some(rest) = key.strip_prefix(prefix) else { return "(other)".to_owned() };
    let mut parts = rest.strip_prefix(b"/").unwrap_or(rest).split(|byte| *byte == b'/');
    let (first, second) = (parts.next().unwrap_or_default(), parts.next());
    match (first, second) {
        (b"services", Some(b"specs")) => "services".to_owned(),
        (b"services", Some(b"endpoints")) => "endpoints".to_owned(),
        (b"minions", _) => "nodes".to_owned(),
        (b"controllers", _) => "replicationcontrollers".to_owned(),
        (b"ingress", _) => "ingresses".to_owned(),
        (group, Some(resource)) if group.contains(&b'.') => format!("{}.{}", printable(resource), printable(group)),
        (resource, _) => printable(resource),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_named_as_kubectl_does() {
        for (key, expected) in [
            ("/registry/secrets/default/a", "secrets"),
            ("/registry/services/specs/default/a", "services"),
            ("/registry/services/endpoints/default/a", "endpoints"),
            ("/registry/example.com/widgets/default/a", "widgets.example.com"),
            ("/registry/apiregistration.k8s.io/apiservices/v1.", "apiservices.apiregistration.k8s.io"),
            ("/registry/namespaces/default", "namespaces"),
            ("/registry/minions/node-1", "nodes"),
            ("/registry/ingress/default/a", "ingresses"),
            ("/registry/", ""),
            ("/registry/a.b", "a.b"),
            ("/kubernetes.io/secrets/default/a", "(other)"),
            ("compact_rev_key", "(other)"),
        ] {
            assert_eq!(resource(key.as_bytes(), b"/registry/"), expected);
        }
        assert_eq!(resource(b"/registry/secrets/a/b", b"/registry"), "secrets");
        assert_eq!(resource(b"/registry/se\x1b\xffcrets/a", b"/registry/"), "se\u{fffd}\u{fffd}crets");
    }
}
