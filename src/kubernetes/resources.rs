//! Names of resources in an `EncryptionConfiguration`: `secrets`, `deployments.apps`, `*.`, `*.apps`, `*.*`.

/// Whether everything that `narrow` names is also named by `wide`.
pub(super) fn covers(wide: &str, narrow: &str) -> bool {
    let (wide_name, wide_group) = split(wide);
    let (narrow_name, narrow_group) = split(narrow);
    let name = wide_name == "*" || wide_name == narrow_name;
    // `*.*` is every group; `*.` the core group alone.
    let group = wide_group == "*" || wide_group == narrow_group;
    name && group
}

/// Why the API server does not take the name.
pub(super) fn refusal(text: &str) -> Option<&'static str> {
    let (name, group) = split(text);
    if text == "*" {
        Some("`*` alone is no name: `*.` is the core group, `*.*` everything")
    } else if name.is_empty() || text.chars().any(|character| character.is_whitespace() || character.is_control()) {
        Some("it is no name of a resource")
    } else if text.chars().any(char::is_uppercase) {
        Some("names of resources have no capital letters")
    } else if group == "*" && name != "*" {
        Some("a resource cannot be named in all groups")
    } else if group == "extensions" {
        Some("the group `extensions` is gone")
    } else if text == "*.events.k8s.io" || group == "events.k8s.io" {
        Some("events are stored as `events`, without a group")
    } else {
        None
    }
}

/// Resource and group. The core group is empty, written with or without the dot.
fn split(text: &str) -> (&str, &str) {
    text.split_once('.').unwrap_or((text, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_cover_what_they_name() {
        for (wide, narrow) in [
            ("secrets", "secrets"),
            ("*.", "secrets"),
            ("*.*", "secrets"),
            ("*.*", "*."),
            ("*.*", "*.apps"),
            ("*.apps", "deployments.apps"),
        ] {
            assert!(covers(wide, narrow), "{wide} {narrow}");
        }
        for (wide, narrow) in
            [("secrets", "configmaps"), ("*.", "deployments.apps"), ("*.apps", "secrets"), ("secrets", "*.")]
        {
            assert!(!covers(wide, narrow), "{wide} {narrow}");
        }
    }

    #[test]
    fn names_that_the_api_server_refuses_are_known() {
        for name in ["*", "", ".apps", "Secrets", "secrets.*", "ingresses.extensions", "*.events.k8s.io", "a b"] {
            assert!(refusal(name).is_some(), "{name}");
        }
        for name in ["secrets", "*.", "*.*", "*.apps", "deployments.apps", "pandas.awesome.bears.example"] {
            assert_eq!(refusal(name), None, "{name}");
        }
    }
}
