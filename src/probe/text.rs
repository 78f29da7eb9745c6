//! The report for people: 80 columns.

use std::fmt::Write;

use comfy_table::{ContentArrangement, Table, presets};

use super::attributes::{AttributeFinding, Value};
use super::outcome::Outcome;
use super::report::{Report, Section};
use super::sizes::{Says, Size};

/// The report as text. `colour`: with escape codes for a terminal.
pub fn text(report: &Report, colour: bool) -> String {
    let text: String = [
        identity(report),
        mechanisms(report),
        seals(report),
        attributes(report),
        secrecy(report),
        calls(report),
        kek(report),
        profile(report),
        end(report),
    ]
    .concat();
    if colour { coloured(&text) } else { text }
}

fn identity(report: &Report) -> String {
    let (module, token) = (&report.module, &report.token);
    let interfaces = of(&report.interfaces, |list| if list.is_empty() { "none".to_owned() } else { list.join(", ") });
    let rows = [
        ("module", report.path.display().to_string()),
        ("", format!("{}, {} {}", module.manufacturer, module.library, module.library_version)),
        ("", format!("PKCS#11 {}; interfaces: {interfaces}", module.cryptoki_version)),
        ("SHA-256", report.sha256.clone()),
        ("token", format!("{:?}, {} {}", token.label, token.manufacturer, token.model)),
        ("", format!("serial {}, firmware {}", token.serial, token.firmware)),
        ("flags", token.flags.join(" ")),
        ("PIN", format!("{} to {} bytes, as it says", token.pin_bytes.0, token.pin_bytes.1)),
        ("sessions", token.sessions.map_or("no limit told".to_owned(), |most| format!("{most}, as it says"))),
        ("probed", format!("{} by {}, {} login(s)", report.time, report.tool, report.logins)),
    ];
    table(&[], rows.map(|(name, value)| vec![name.to_owned(), value]))
}

fn mechanisms(report: &Report) -> String {
    section("Mechanisms", &report.mechanisms, |found| {
        let rows = found.known.iter().map(|(name, info)| match info {
            Some(info) => {
                let (least, most) = info.key_size;
                vec![name.clone(), format!("{least} to {most}"), info.flags.join(" ")]
            }
            None => vec![name.clone(), String::new(), "not there".to_owned()],
        });
        let count = format!("{} mechanisms in all; those that a seal could use:\n", found.count);
        count + &table(&["mechanism", "key size", "for"], rows)
    })
}

fn seals(report: &Report) -> String {
    let mut text = heading("Ways of sealing, each tried");
    if report.seals.is_empty() {
        return text + "untried: nobody logged in\n";
    }
    let not_there = Outcome::refused("C_GetMechanismInfo", cryptoki_sys::CKR_MECHANISM_INVALID);
    let (absent, mut tried): (Vec<_>, Vec<_>) = report.seals.iter().partition(|(_, seal)| seal.outcome == not_there);
    tried.sort_by_key(|(_, seal)| !seal.outcome.works());
    let rows = tried.into_iter().map(|(name, seal)| {
        let long = seal.longest.as_ref().filter(|longest| !longest.works());
        let long = long.map(|longest| format!("; 928 bytes: {longest}")).unwrap_or_default();
        let changed = seal.changed_bit.as_ref().filter(|outcome| outcome.is_refusal());
        let changed = changed.map(|changed| format!("; a changed bit: {}", changed.detail)).unwrap_or_default();
        vec![name.clone(), format!("{}{changed}{long}", seal.outcome)]
    });
    text += &table(&[], rows);
    if !absent.is_empty() {
        let names: Vec<_> = absent.into_iter().map(|(name, _)| name.as_str()).collect();
        text += &table(&[], [vec!["no mechanism:".to_owned(), names.join(", ")]]);
    }
    text + &match &report.chosen {
        Some(chosen) => format!("The rest was tried with {chosen}.\n"),
        None => "None works.\n".to_owned(),
    }
}

fn attributes(report: &Report) -> String {
    let mut text = section("Attributes of a key", &report.attributes, |found| {
        let rows = found.iter().map(|(name, finding)| {
            let AttributeFinding { value, generate, reads, forbidden } = finding;
            let reads = reads.as_ref().map(|reads| format!(", reads {}", value_text(reads)));
            let reads = reads.unwrap_or_else(|| if generate.works() { ", reads absent" } else { "" }.to_owned());
            let kept = forbidden.as_ref().map(|outcome| format!("; what it forbids: {outcome}")).unwrap_or_default();
            vec![format!("{}={}", short(name), value_text(value)), format!("{generate}{reads}{kept}")]
        });
        let mut text = table(&[], rows);
        if found.get("CKA_TRUSTED").is_some_and(|finding| finding.generate.works()) {
            text += "A user may set CKA_TRUSTED here: CKA_WRAP_WITH_TRUSTED then protects nothing.\n";
        }
        text
    });
    if let Some(defaults) = report.defaults.found() {
        let list: Vec<_> = defaults.iter().map(|(name, value)| format!("{}={}", short(name), word(*value))).collect();
        text += &table(&[], [vec!["left out:".to_owned(), list.join(" ")]]);
    }
    text
}

fn short(attribute: &str) -> &str {
    attribute.trim_start_matches("CKA_")
}

fn secrecy(report: &Report) -> String {
    section("What must be refused of a key that must not leave", &report.secrecy, |found| {
        table(&[], found.iter().map(|(what, outcome)| vec![what.clone(), outcome.to_string()]))
    })
}

fn calls(report: &Report) -> String {
    if report.logins == 0 {
        return String::new();
    }
    let mut rows = Vec::new();
    let mut row = |name: &str, text: String| rows.push(vec![name.to_owned(), text]);
    let size = |Size { says, is }: &Size| {
        let is = is.map_or("unknown".to_owned(), |is| is.to_string());
        match says {
            Says::Bytes(says) => format!("says {says}, is {is}"),
            Says::Not(outcome) => outcome.to_string(),
        }
    };
    row("size of a seal", of(&report.sizes, |sizes| size(&sizes.encrypt)));
    row("size when opened", of(&report.sizes, |sizes| size(&sizes.decrypt)));
    row(
        "buffer of 1 byte",
        of(&report.small_buffer, |small| {
            let then = match small.lives_on {
                Some(true) => "; the operation lives on",
                Some(false) => "; the operation is gone",
                None => "",
            };
            format!("{}{then}", small.outcome)
        }),
    );
    row("8 bytes to open", report.short_ciphertext.to_string());
    row(
        "sessions",
        of(&report.sessions, |sessions| match &sessions.refused {
            Some(refused) => format!("{}, the next one {refused}", sessions.open),
            None => format!("{}, more was not tried", sessions.open),
        }),
    );
    row(
        "seal, 1 thread",
        of(&report.speed, |speed| {
            let place = if speed.token_key { "key on the token" } else { "session key" };
            format!("half within {} us, the slowest {} us; {place}", speed.p50_us, speed.max_us)
        }),
    );
    row(
        "seals a second",
        of(&report.speed, |speed| {
            let rates = speed.per_second.iter().map(|(threads, rate)| format!("{rate} by {threads}"));
            format!("{} thread(s)", rates.collect::<Vec<_>>().join(", "))
        }),
    );
    heading("Calls") + &table(&[], rows)
}

fn kek(report: &Report) -> String {
    section("A KEK as a ceremony makes it", &report.kek, |kek| {
        let mut text = format!("{}\n", kek.outcome);
        if !kek.permit.is_empty() {
            let names: Vec<_> = kek.permit.iter().map(ToString::to_string).collect();
            let _ = writeln!(text, "The plan must have: kek.permit: [{}]", names.join(", "));
        }
        let rows =
            kek.refusals.iter().map(|(attempt, answer)| vec![attempt.clone(), answer.replace(" returned ", " ")]);
        text + &table(&["tried on it", "answer"], rows)
    })
}

fn profile(report: &Report) -> String {
    let Some(profile) = &report.profile else { return String::new() };
    let rows = profile.lines.iter().map(|line| {
        let sign = if line.agrees { "" } else { "differs" };
        vec![sign.to_owned(), line.field.clone(), line.profile.clone(), line.module.clone()]
    });
    let table = table(&["", "field", "profile", "module"], rows);
    format!("{}{table}", heading(&format!("Held against profile {}", profile.name)))
}

fn end(report: &Report) -> String {
    let mut text = heading("Result");
    for fault in &report.faults {
        let _ = writeln!(text, "The module's process was lost at {:?}: {}.", fault.step, fault.outcome);
    }
    if !report.clean_up.outcome.works() {
        let _ = writeln!(
            text,
            "KEYS MAY BE LEFT on the token; ours have the label {}: {}.",
            report.clean_up.label, report.clean_up.outcome
        );
    }
    let result = match &report.profile {
        _ if report.logins == 0 && report.seals.is_empty() => "Without a PIN nothing was tried.".to_owned(),
        Some(profile) if profile.agrees => format!("The module does as profile {} says.", profile.name),
        Some(profile) => format!("The module differs from profile {}.", profile.name),
        None if report.is_fit() => "A KEK can be kept and used there.".to_owned(),
        None => "No KEK can be kept there as things are: see above.".to_owned(),
    };
    text + &result + "\n"
}

fn of<T>(section: &Section<T>, text: impl FnOnce(&T) -> String) -> String {
    match section {
        Section::Found(found) => text(found),
        Section::Not(why) => why.to_string(),
    }
}

fn section<T>(title: &str, section: &Section<T>, text: impl FnOnce(&T) -> String) -> String {
    heading(title) + of(section, text).trim_end() + "\n"
}

fn heading(title: &str) -> String {
    format!("\n{title}\n{}\n", "-".repeat(title.len()))
}

fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    if !header.is_empty() {
        table.set_header(header);
    }
    table.add_rows(rows);
    table.lines().flat_map(|line| [line.trim_end().to_owned(), "\n".to_owned()]).collect()
}

const WIDTH: u16 = 80;

fn value_text(value: &Value) -> String {
    match value {
        Value::Flag(flag) => flag.to_string(),
        Value::Mechanisms(names) => names.join(","),
        Value::Bytes(bytes) => data_encoding::HEXLOWER.encode(bytes),
    }
}

fn word(value: Option<bool>) -> &'static str {
    match value {
        Some(true) => "true",
        Some(false) => "false",
        None => "absent",
    }
}

/// Colours the words of verdicts; the text itself stays as wide as it was.
fn coloured(text: &str) -> String {
    let colour = |line: &str| {
        let mut line = line.to_owned();
        for (word, code) in [(" works", 32), (" differs", 31), (" crashed", 31), (" hung", 31), (" untried", 33)] {
            line = line.replace(word, &format!("\x1b[{code}m{word}\x1b[0m"));
        }
        line
    };
    text.lines().flat_map(|line| [colour(line), "\n".to_owned()]).collect()
}
