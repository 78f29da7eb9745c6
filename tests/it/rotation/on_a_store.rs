//! A rotation as the store sees it: the objects of a real etcd, which three API servers wrote, move to another KEK.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use hsm_kms::etcd::inventory::Inventory;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::load::{Load, Store};
use super::site::Site;
use super::{hand_out, text_of};
use crate::api_server_stack::plaintext_of;
use crate::emulator::{ApiServer, Plugin};
use crate::etcd::Etcd;
use crate::harness::{run, text};

const NODES: usize = 3;
const OBJECTS: usize = 10_000;
/// So many are updated while the nodes do not agree, a third of them by each API server.
const UPDATES: usize = 300;
/// Changes of the KEK, each with a migration of everything. `HSM_KMS_ROTATIONS` asks for another number.
const QUICK: usize = 2;
const FOLDER: &str = "/registry/secrets/default/";
const PROVIDER: &str = "kms";

/// Three nodes, each with an API server, on one etcd.
struct Cluster {
    site: Site,
    etcd: Etcd,
    servers: Vec<ApiServer>,
    /// With the etcd, its snapshots and the inventories.
    directory: TempDir,
    reads: usize,
    writes: usize,
}

/// A file with an inventory, and what it says.
struct Counted {
    file: PathBuf,
    inventory: Inventory,
}

impl Cluster {
    async fn start() -> Self {
        let site = Site::start(NODES, 2).await;
        let directory = tempfile::tempdir().unwrap();
        let etcd = Etcd::start(directory.path());
        let servers = servers(&site).await;
        Self { site, etcd, servers, directory, reads: 0, writes: 0 }
    }

    /// Lets every API server ask for Status, which they do each minute.
    async fn poll(&mut self) {
        for server in &mut self.servers {
            server.advance(std::time::Duration::from_mins(1)).await;
            server.readyz().await.unwrap();
        }
    }

    /// Writes the first so many objects, each by one of the API servers with the seed that it has now.
    fn write(&mut self, count: usize) {
        let mut values = Vec::new();
        for number in 0..count {
            let server = &mut self.servers[number % NODES];
            values.push(server.write(&key(number), &plaintext_of(&number.to_string())).unwrap());
        }
        self.etcd.fill(FOLDER, count, |number| values[number].clone());
        self.writes += count;
    }

    /// Reads every object by another node than wrote it, after a restart of the API server: no seed is known, and the node must open
    /// it. Returns how many objects that API server would write anew.
    async fn read(&mut self) -> usize {
        let mut servers = servers(&self.site).await;
        let mut stale = 0;
        let entries = self.etcd.list(FOLDER);
        assert_eq!(entries.len(), OBJECTS);
        for (number, entry) in entries.iter().enumerate() {
            let read = servers[(number + 1) % NODES].read(&entry.key, &entry.value).await;
            let read = read.unwrap_or_else(|error| panic!("{}: {error}", entry.key));
            assert_eq!(read.plaintext, plaintext_of(&number.to_string()), "{}", entry.key);
            stale += usize::from(read.stale);
        }
        self.reads += OBJECTS;
        stale
    }

    /// The migration: every object is read, and written with the seed that its API server has now.
    async fn migrate(&mut self) {
        let mut values = Vec::new();
        for (number, entry) in self.etcd.list(FOLDER).iter().enumerate() {
            let server = &mut self.servers[number % NODES];
            let read = server.read(&entry.key, &entry.value).await.unwrap();
            values.push(server.write(&entry.key, &read.plaintext).unwrap());
        }
        self.etcd.fill(FOLDER, OBJECTS, |number| values[number].clone());
        self.reads += values.len();
        self.writes += values.len();
    }

    /// Counts the live etcd and a snapshot of it, which must agree.
    fn count(&self, name: &str) -> [Counted; 2] {
        let place = |extension: &str| self.directory.path().join(name).with_extension(extension);
        let snapshot = text(&self.etcd.snapshot(&place("db")));
        let sources = [("live", ["--endpoint", self.etcd.url()]), ("snapshot", ["--snapshot", &snapshot])];
        let counted = sources.map(|(extension, source)| {
            let output = run(&[&["etcd", "inventory", "--json"][..], &source].concat(), b"");
            assert!(output.status.success(), "{output:?}");
            let file = place(extension);
            fs::write(&file, &output.stdout).unwrap();
            Counted { file, inventory: serde_json::from_slice(&output.stdout).unwrap() }
        });
        let [live, snapshot] = [&counted[0].inventory, &counted[1].inventory];
        assert_eq!(live.groups, snapshot.groups);
        assert_eq!((live.revision, live.objects, live.bytes), (snapshot.revision, snapshot.objects, snapshot.bytes));
        assert!(live.complete && snapshot.complete);
        counted
    }

    /// How many nodes open one object of this source: the right plaintext.
    fn opened_from(&self, source: [&str; 2]) -> usize {
        let opens = |node: usize| {
            let socket = text(self.site.nodes[node].plugin().socket());
            let more = ["--key", &key(UPDATES), "--socket", &socket, "--output", "raw"];
            let output = run(&[&["etcd", "decrypt"][..], &source, &more].concat(), b"");
            output.status.success() && output.stdout == plaintext_of(&UPDATES.to_string())
        };
        (0..NODES).filter(|node| opens(*node)).count()
    }

    /// The same of the live etcd, and of the snapshot that was counted under this name.
    fn opened(&self, name: &str) -> [usize; 2] {
        let snapshot = text(&self.directory.path().join(name).with_extension("db"));
        [["--endpoint", self.etcd.url()], ["--snapshot", &snapshot]].map(|source| self.opened_from(source))
    }
}

/// Again and again: each time every object moves, and nothing is left under the `key_id` of before.
#[tokio::test]
async fn nothing_is_left_behind_however_often_the_kek_changes() {
    let rotations = std::env::var("HSM_KMS_ROTATIONS").map_or(QUICK, |text| text.parse().unwrap());
    let mut cluster = Cluster::start().await;
    let store = Arc::new(Store::default());
    let loads: Vec<Load> =
        (0..NODES).map(|node| Load::start(node, cluster.site.nodes[node].plugin(), &store)).collect();
    cluster.write(OBJECTS);
    let mut reloads = Vec::new();
    cluster.site.done(&["stage", "--record", &cluster.site.record(2)]);
    hand_out(&cluster.site, &[0, 1, 2], &mut reloads).await;
    let nodes = cluster.site.addresses(&[0, 1, 2]);
    for rotation in 0..rotations {
        let record = cluster.site.record((rotation + 1) % 2 + 1);
        cluster.site.done(&["activate", "--record", &record, "--nodes", &nodes]);
        // Each time another node is first, and what is written meanwhile is under both KEKs.
        let first = rotation % NODES;
        hand_out(&cluster.site, &[first], &mut reloads).await;
        cluster.poll().await;
        cluster.write(UPDATES);
        hand_out(&cluster.site, &[(first + 1) % NODES, (first + 2) % NODES], &mut reloads).await;
        cluster.poll().await;
        cluster.migrate().await;
        let [live, _] = cluster.count("after");
        let keks = live.inventory.keks();
        let announced = text_of(&cluster.site.nodes[0].report()["key_id_hash"]);
        assert_eq!(keks.len(), 1, "rotation {rotation}: the KEK of before is still needed");
        assert_eq!((keks[0].key_id.map(hsm_kms::key_id::hash), keks[0].objects), (Some(announced), OBJECTS as u64));
    }
    assert_eq!(cluster.read().await, 0);
    loads.into_iter().for_each(Load::stop);
    let tally = store.tally();
    println!(
        "{rotations} rotations of {OBJECTS} objects, {} reads and {} writes of the store, under load: {}",
        cluster.reads,
        cluster.writes,
        tally.figures(&reloads)
    );
    assert!(tally.failures.is_empty(), "{:#?}", tally.failures);
}

/// `keyring retire` of the first KEK by these inventories.
fn retire<'a>(files: &'a str, nodes: &'a str) -> [&'a str; 7] {
    ["retire", "--record", "kek-1.json", "--inventory", files, "--nodes", nodes]
}

/// An API server that starts on each node.
async fn servers(site: &Site) -> Vec<ApiServer> {
    let mut servers = Vec::new();
    for node in &site.nodes {
        servers.push(ApiServer::start([(PROVIDER, Plugin::real(node.plugin().client().await))]).await);
    }
    servers
}

fn key(number: usize) -> String {
    format!("{FOLDER}{number:06}")
}

/// How many objects need the KEKs with these `key_id`s, in turn. There are no others.
fn needs(counted: &[Counted; 2], key_ids: &[String; 2]) -> [u64; 2] {
    let keks = counted[0].inventory.keks();
    let of = |key_id: &String| {
        keks.iter().filter(|kek| kek.key_id == Some(key_id) && kek.provider == PROVIDER).map(|kek| kek.objects).sum()
    };
    let needs = key_ids.each_ref().map(of);
    assert_eq!(needs.iter().sum::<u64>(), counted[0].inventory.objects);
    needs
}

fn files(counted: &[Counted; 2]) -> String {
    counted.each_ref().map(|counted| text(&counted.file)).join(",")
}

/// Ten minutes of waiting, without the wait: the inventory of the live store as a later one would be.
fn as_made_later(counted: &Counted) {
    let mut value: Value = serde_json::from_slice(&fs::read(&counted.file).unwrap()).unwrap();
    let made: jiff::Timestamp = text_of(&value["made"]).parse().unwrap();
    value["made"] = json!(jiff::Timestamp::from_second(made.as_second() + 601).unwrap().to_string());
    fs::write(&counted.file, value.to_string()).unwrap();
}

/// From one KEK to the other by the real commands, under load; then the old KEK is needed by nothing, and is retired.
#[tokio::test]
async fn every_object_of_a_store_moves_to_the_new_kek() {
    let mut cluster = Cluster::start().await;
    let store = Arc::new(Store::default());
    let loads: Vec<Load> =
        (0..NODES).map(|node| Load::start(node, cluster.site.nodes[node].plugin(), &store)).collect();
    cluster.write(OBJECTS);
    let mut reloads = Vec::new();
    cluster.site.done(&["stage", "--record", &cluster.site.record(2)]);
    hand_out(&cluster.site, &[0, 1, 2], &mut reloads).await;
    let nodes = cluster.site.addresses(&[0, 1, 2]);
    assert_eq!(cluster.site.done(&["converged", "--nodes", &nodes])["converged"], json!(true));
    cluster.site.done(&["activate", "--record", "kek-2.json", "--nodes", &nodes]);
    let list = cluster.site.done(&["list"]);
    let key_ids = [0, 1].map(|kek| text_of(&list["keks"][kek]["key_ids"][0]));
    let before = cluster.count("before");
    assert_eq!(needs(&before, &key_ids), [OBJECTS as u64, 0]);
    assert_eq!(before[0].inventory.keks()[0].seeds, NODES);
    assert_eq!(cluster.opened("before"), [NODES; 2]);

    // One node seals with the new KEK, the others do not yet: a third of the updates moves.
    hand_out(&cluster.site, &[0], &mut reloads).await;
    cluster.poll().await;
    cluster.write(UPDATES);
    cluster.read().await;
    hand_out(&cluster.site, &[2, 1], &mut reloads).await;
    cluster.poll().await;
    let (moved, left) = (UPDATES / NODES, OBJECTS - UPDATES / NODES);
    assert_eq!(cluster.read().await, left, "what is under the old KEK is to be written anew");
    let amid = cluster.count("amid");
    assert_eq!(needs(&amid, &key_ids), [left as u64, moved as u64]);
    assert_eq!(cluster.opened("amid"), [NODES; 2]);
    let needed = format!("shows {left} objects (secrets of provider {PROVIDER}) that need it");
    cluster.site.refused(&retire(&files(&amid), &nodes), 1, &needed);

    cluster.migrate().await;
    assert_eq!(cluster.read().await, 0);
    let after = cluster.count("after");
    assert_eq!(needs(&after, &key_ids), [0, OBJECTS as u64]);
    assert_eq!(cluster.opened("after"), [NODES; 2]);
    // The load keeps what the old KEK sealed, as a backup does.
    loads.into_iter().for_each(Load::stop);
    let tally = store.tally();

    // Nothing needs it. What is missing is the time after which that stays so.
    let early = "no inventory of a running etcd was made 10 min or more after a KEK became active";
    cluster.site.refused(&retire(&files(&after), &nodes), 1, early);
    as_made_later(&after[0]);
    let with_backup = format!("{},{}", files(&after), text(&before[1].file));
    let in_backup = format!("shows {OBJECTS} objects (secrets of provider {PROVIDER}) that need it");
    cluster.site.refused(&retire(&with_backup, &nodes), 1, &in_backup);
    cluster.site.done(&retire(&files(&after), &nodes));
    hand_out(&cluster.site, &[0, 1, 2], &mut reloads).await;
    assert_eq!(cluster.read().await, 0);
    assert_eq!(cluster.opened("after"), [NODES; 2]);
    assert_eq!(cluster.opened("before"), [NODES, 0], "the backup of before needs the KEK that was retired");
    println!(
        "{OBJECTS} objects, {} reads and {} writes of the store, under load: {}",
        cluster.reads,
        cluster.writes,
        tally.figures(&reloads)
    );
    assert!(tally.failures.is_empty(), "{:#?}", tally.failures);
}
