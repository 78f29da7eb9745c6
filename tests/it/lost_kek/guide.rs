//! `recovery guide` at each step of a recovery: what it says is done, and what comes next.

use serde_json::Value;

use super::site::{LostSite, RestoredSite, text_of};
use crate::harness::{CLUSTER, TestToken, run, text};

const OBJECTS: usize = 200;

/// The number of the step that is open, of ten, and what comes next. No line of the table is wider than a terminal.
fn guide(arguments: &[&str]) -> (Option<usize>, String) {
    let arguments = [&["recovery", "guide"], arguments].concat();
    let output = run(&[&arguments[..], &["--json"]].concat(), b"");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let open = report["steps"].as_array().unwrap().iter().position(|step| step["state"] == "open");
    assert_eq!((output.status.code(), &report["done"]), (Some(open.is_some().into()), &open.is_none().into()));
    let shown = text_of(&run(&arguments, b"").stdout);
    assert!(shown.lines().filter(|line| line.starts_with('|')).all(|line| line.chars().count() <= 80), "{shown}");
    let next = open.map_or(String::new(), |open| report["steps"][open]["next"].as_str().unwrap().to_owned());
    assert!(shown.ends_with(&format!("{next}\n")) || open.is_none(), "{shown}");
    (open.map(|open| open + 1), if open.is_some() { next } else { shown })
}

#[tokio::test]
async fn the_guide_knows_each_step() {
    let lost = LostSite::new(TestToken::new(), OBJECTS).await.lose().await;
    let mut site = RestoredSite::new(&lost, TestToken::new()).await;
    let (snapshot, key, record) = (text(&lost.snapshot), text(&lost.key.private), text(&site.record));
    let (socket, table, endpoint) =
        (text(site.plugin().socket()), site.place("table.json"), site.etcd.url().to_owned());
    let mut given: Vec<&str> = Vec::new();
    let expect = |given: &[&str], number: usize, next: &str| {
        let (open, found) = guide(given);
        assert_eq!(open, Some(number), "{given:?}: {found}");
        assert!(found.contains(next), "{found}");
    };
    expect(&["--snapshot", "/no/such/file"], 1, "check the path");
    given.extend(["--snapshot", &snapshot]);
    expect(&given, 3, "--key FILE");
    given.extend(["--key", &key]);
    expect(&given, 4, "--record FILE");
    given.extend(["--record", &record]);
    expect(&given, 4, "--socket PATH");
    given.extend(["--socket", &socket]);
    expect(&given, 5, &format!("hsm-kms recovery rewrap --snapshot {snapshot}"));
    expect(&given, 5, &format!("--cluster {CLUSTER}"));

    let rewrapped = site.rewrap(&lost, "table.json", &[]);
    assert!(rewrapped.status.success(), "{}", text_of(&rewrapped.stderr));
    given.extend(["--table", &table]);
    expect(&given, 6, &format!("rewrap_table: {table}"));
    site.serve_with(Some("table.json")).await;
    expect(&given, 7, "--endpoint URL");
    given.extend(["--endpoint", &endpoint]);
    expect(&given, 8, "kubectl get secrets --all-namespaces -o json | kubectl replace -f -");
    site.migrate(OBJECTS).await;
    expect(&given, 9, "take the line rewrap_table out");
    site.serve_with(None).await;
    let (open, shown) = guide(&given);
    assert_eq!(open, None, "{shown}");
    assert!(shown.contains("Recovered."), "{shown}");
    println!("{shown}");

    // A key that is none of the recipients, and a plugin that has another KEK than the record says.
    let other = super::site::Key::make(lost.directory.path(), "other");
    expect(&["--snapshot", &snapshot, "--key", &text(&other.private)], 3, "a recipient that step 2 names");
    let of_lost = text(&lost.directory.path().join("kek-1.json"));
    let wrong = ["--snapshot", &snapshot, "--key", &key, "--record", &of_lost, "--socket", &socket];
    expect(&wrong, 4, "set kek.record of its configuration");
}
