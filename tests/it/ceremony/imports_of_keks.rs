//! A KEK that comes in shares, from the rehearsal to the first Secret: and nobody but its custodian sees a share.

use std::fs;
use std::path::Path;

use hsm_kms::shares::{SecretDigest, Share, combine};
use serde_json::json;

use super::custodians::{close, empty_token, hand_out, keys_on, open, show, sign, staged};
use super::staged::{REHEARSED_HALVES, Staged};
use super::terminal::Terminal;
use crate::failover::{SEED, decrypt, encrypt};
use crate::harness::{Config, Plugin, text};

#[tokio::test]
async fn a_kek_comes_in_by_three_custodians_and_is_served() {
    let mut staged = staged();
    let copy = empty_token(&staged, 1);
    staged.plan["copies"] = json!([copy.plan()]);
    let rehearsal = staged.file("rehearsal");
    fs::create_dir(&rehearsal).unwrap();
    let plan = staged.plan_file();
    let arguments = ["ceremony", "rehearse", "--plan", &plan, "--output", &text(&rehearsal)].map(str::to_owned);
    let mut terminal = Terminal::start(&arguments);
    let halves = REHEARSED_HALVES.map(str::to_owned);
    open(&mut terminal, &staged, &halves);
    let rehearsed = hand_out(&mut terminal);
    close(&mut terminal, &halves, 1);
    let (status, screen) = terminal.end();
    assert_eq!(status.code(), Some(0), "{screen}");
    staged.has_no_key();

    let arguments = [staged.bare_arguments(), vec!["--rehearsal".to_owned(), text(&rehearsal)]].concat();
    let mut terminal = Terminal::start(&arguments);
    open(&mut terminal, &staged, &staged.halves);
    let shares: Vec<_> = (1..=3).map(|number| written_back(&mut terminal, number, &rehearsed)).collect();
    close(&mut terminal, &staged.halves, 1);
    let (status, screen) = terminal.end();
    assert_eq!(status.code(), Some(0), "{screen}");
    are_seen_alone(&screen, &shares);

    let record = staged.record();
    assert_eq!((&record["kind"], &record["recovery"]), (&json!("production"), &json!("shares")));
    let witnessed = &record["witnessed"];
    assert_eq!((&witnessed["origin"], &witnessed["exceptions"]), (&json!("imported"), &json!([])));
    assert_eq!((&witnessed["shares"]["shares"], &witnessed["shares"]["threshold"]), (&json!(3), &json!(2)));
    assert_eq!(witnessed["copies"][0]["serial"], json!(copy.serial));
    assert_eq!(witnessed["people"].as_array().unwrap().len(), 6);
    staged.has_the_key_of_its_record();
    assert_eq!(keys_on(&staged, &copy), [&record["kek"]["label"], &record["kek"]["id"]].map(|v| v.as_str().unwrap()));
    are_in_no_file(&staged, &shares);
    sign(&staged, &staged.output());

    // From the token, and then from the one that got the KEK with it.
    let serve = |section: &serde_json::Value, name: &str| {
        let record = staged.output().join("kek-record.json");
        let mut config = Config::on(section, staged.token.directory(), &record, name);
        config.value["kek"].as_object_mut().unwrap().remove("allow_trial");
        config
    };
    let mut plugin = Plugin::start(&serve(&staged.token.section(), "plugin")).healthy().await;
    let mut client = plugin.client().await;
    let sealed = encrypt(&mut client).await.unwrap();
    assert_eq!(decrypt(&mut client, &sealed).await.unwrap(), SEED);
    plugin.stop().await;
    let mut standby = serve(&staged.token.section(), "standby");
    let fault = crate::fault_module::FaultModule::new(&staged.token, "gone");
    fault.stand_in_front(&mut standby.value["token"]);
    fault.always("C_GetSlotList", &json!("no_slots"));
    standby.value["standby"] = json!([{"token": copy.section(), "serial": copy.serial}]);
    let mut plugin = Plugin::start(&standby).healthy().await;
    assert_eq!(decrypt(&mut plugin.client().await, &sealed).await.unwrap(), SEED);
    plugin.stop().await;
}

/// The custodian makes every mistake there is on the way, and then none.
fn written_back(terminal: &mut Terminal, number: usize, others: &[String]) -> String {
    let share = show(terminal);
    let slip = slip(&share, 5);
    for (typed, why) in [
        (slip.as_str(), "look at group 6,"),
        (&others[number - 1], "and not share"),
        ("hks1", "characters without blanks"),
    ] {
        terminal.answer("type it back", typed);
        terminal.until_asked();
        let news = terminal.news().split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(news.contains("Not right: ") && news.contains(why), "{typed}: {news}");
    }
    // As it stands on the paper, in groups.
    let groups: Vec<_> = share.as_bytes().chunks(4).map(|group| str::from_utf8(group).unwrap()).collect();
    terminal.answer("type it back", &groups.join(" ").to_uppercase());
    share
}

/// Another letter in this group, from 0.
fn slip(share: &str, group: usize) -> String {
    let mut bytes = share.as_bytes().to_vec();
    let place = group * 4 + 1;
    bytes[place] = if bytes[place] == b'q' { b'p' } else { b'q' };
    String::from_utf8(bytes).unwrap()
}

/// Each stands there once: after its custodian is alone, and until the screen is cleared.
fn are_seen_alone(screen: &str, shares: &[String]) {
    let pages: Vec<String> = screen.split("\x1b[2J").map(plain).collect();
    for share in shares {
        let seen: Vec<_> = pages.iter().filter(|page| page.contains(share.as_str())).collect();
        let [page] = seen[..] else { panic!("{} pages show it:\n{screen}", seen.len()) };
        let (before, after) = page.split_once(share.as_str()).unwrap();
        assert!(before.ends_with("whenyouare:alone"), "{screen}");
        assert_eq!(after, ">type\"written\"whenitisonpaper:written", "{screen}");
        for part in parts(share) {
            assert_eq!(pages.iter().filter(|page| page.contains(part)).count(), 1, "a part of a share was shown");
        }
    }
}

/// Neither a share, nor a part of one, nor the KEK.
fn are_in_no_file(staged: &Staged, shares: &[String]) {
    let digest: SecretDigest = staged.record()["witnessed"]["shares"]["digest"].as_str().unwrap().parse().unwrap();
    let two = [&shares[2], &shares[0]].map(|text| Share::parse(text).unwrap());
    let kek = combine(&two, |secret| digest.is_of(secret)).unwrap();
    let texts = [data_encoding::HEXLOWER.encode(&kek), data_encoding::BASE64.encode(&kek).to_lowercase()];
    let mut canaries: Vec<String> = shares.iter().flat_map(|share| parts(share).map(str::to_owned)).collect();
    canaries.extend(texts);
    let mut count = 0;
    for file in files(&staged.output()).into_iter().chain(files(&staged.file("rehearsal"))) {
        let bytes = fs::read(&file).unwrap();
        let text = plain(&String::from_utf8_lossy(&bytes).to_lowercase());
        assert!(!canaries.iter().any(|canary| text.contains(canary)), "{}", file.display());
        assert!(!bytes.windows(kek.len()).any(|part| part == &**kek), "{}", file.display());
        count += 1;
    }
    assert!(count >= 16, "{count} files only");
}

/// Twelve letters each, of what only this share has.
fn parts(share: &str) -> impl Iterator<Item = &str> {
    share.as_bytes()[16..].chunks_exact(12).map(|part| str::from_utf8(part).unwrap())
}

fn files(directory: &Path) -> Vec<std::path::PathBuf> {
    let paths = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.is_file()).collect()
}

/// Without blanks and ends of lines.
fn plain(text: &str) -> String {
    text.split_whitespace().collect()
}
