//! Each step: whether it is done, what was found, and the command that comes next.

use std::collections::BTreeSet;

use super::facts::{Facts, Fit, Live};
use super::{GuideArgs, State, Step};
use crate::cli::CliError;
use crate::cli::recovery::audit::{Audit, percent};

/// What stands for something that was not given yet.
const NOT_GIVEN: &str = "not given yet";

/// Nothing can be found out.
pub(super) fn no_backup(error: &CliError) -> Step {
    let next = format!("{}. Give another copy:\n  hsm-kms recovery guide --snapshot FILE", error.hint);
    open("the backup is readable", error.why.clone(), next)
}

pub(super) fn all(args: &GuideArgs, facts: &Facts) -> Vec<Step> {
    vec![
        backup(args, facts),
        covered(args, facts),
        key(args, facts),
        kek(args, facts),
        table(args, facts),
        served(args, facts),
        restored(args, facts),
        rewritten(facts),
        dropped(args, facts),
        safe_again(args, facts),
    ]
}

fn backup(args: &GuideArgs, facts: &Facts) -> Step {
    let seeds = &facts.backup.seeds;
    let name = "the backup is readable";
    if let Some(fault) = seeds.faults.first() {
        let faults = seeds.faults.len() as u64 + seeds.faults_left_off;
        let found = format!("{faults} faults; the first: {fault}");
        let next = "try another copy of the backup. If there is none, go on with what is readable:";
        return done_if(args.partial, name, found, || again(args, next, "--partial"));
    }
    let found =
        format!("{} objects under {} seeds, revision {}", seeds.objects, seeds.found.len(), facts.backup.revision);
    done_if(seeds.objects > 0, name, found, || "the backup has no object under KMS v2: check --prefix".to_owned())
}

fn covered(args: &GuideArgs, facts: &Facts) -> Step {
    let audit = Audit::of(&facts.backup, None);
    let (covered, objects) = audit.objects();
    let recipients: Vec<&str> = audit.recipients().into_iter().collect();
    let found = format!("{covered} of {objects} objects, {}, to {}", percent(covered, objects), recipients.join(", "));
    let snapshot = args.snapshot.display();
    done_if(
        covered > 0 && (covered == objects || args.partial),
        "its seeds are sealed to a recovery key",
        found,
        || {
            format!(
                "see what is not covered, and read docs/runbooks/lost-kek.md; go on for the rest with --partial:\n  \
             hsm-kms recovery audit --snapshot {snapshot}"
            )
        },
    )
}

fn key(args: &GuideArgs, facts: &Facts) -> Step {
    let name = "the private half fits";
    match &facts.key {
        None if is_table_whole(args, facts) || facts.is_rewritten() => {
            done(name, "not given, and no longer needed".to_owned())
        }
        None => open(
            name,
            NOT_GIVEN.to_owned(),
            again(args, "bring the private half (hsm-kms recovery combine):", "--key FILE"),
        ),
        Some(Err(why)) => {
            open(name, why.clone(), again(args, "give the file that recovery keygen or combine wrote:", ""))
        }
        Some(Ok(Fit { fingerprint, seeds: 0, .. })) => {
            let found = format!("no seed is sealed to {fingerprint}");
            open(name, found, again(args, "bring the private half of a recipient that step 2 names:", ""))
        }
        Some(Ok(Fit { seeds, opened: None, .. })) => {
            done(name, format!("{seeds} seeds are sealed to it; whether they open is seen with --record"))
        }
        Some(Ok(Fit { seeds, opened: Some(opened), .. })) => {
            let found = format!("it opens {opened} of {seeds} seeds");
            let is_enough = opened == seeds || args.partial && *opened > 0;
            done_if(is_enough, name, found, || {
                "the record of the new KEK must name the cluster of the lost one; else try another copy of the backup"
                    .to_owned()
            })
        }
    }
}

fn kek(args: &GuideArgs, facts: &Facts) -> Step {
    let name = "there is a new KEK, and a plugin has it";
    let record = match &facts.record {
        None => {
            let next = "hold a ceremony on the new HSM, with the same cluster and a recipient, and give its record:";
            return open(name, "no record given yet".to_owned(), again(args, next, "--record FILE"));
        }
        Some(Err(why)) => {
            return open(name, why.clone(), "give the kek-record.json that the ceremony wrote".to_owned());
        }
        Some(Ok(record)) => record,
    };
    let announced = match &facts.plugin {
        None => {
            let next = "serve it (hsm-kms serve --config FILE), and give the socket:";
            return open(name, "no socket given yet".to_owned(), again(args, next, "--socket PATH"));
        }
        Some(Err(why)) => {
            return open(name, why.clone(), "look into the plugin's log: journalctl -u hsm-kms".to_owned());
        }
        Some(Ok(announced)) => announced,
    };
    let is_of_record = (1..=MOST_EPOCHS).any(|epoch| record.key_id(epoch) == *announced);
    let is_lost_one = facts.backup.seeds.found.values().any(|seed| seed.key_id == announced.as_str());
    if !is_of_record {
        let next = "set kek.record of its configuration to this record, and restart it".to_owned();
        return open(name, format!("the plugin announces {announced}, which is not of this record"), next);
    }
    if is_lost_one && facts.lost.is_empty() {
        let next = "every KEK of the backup is there, so restore etcd; nothing has to be recovered".to_owned();
        return open(name, format!("it is the KEK of the backup: {announced}"), next);
    }
    let is_bare = record.recipients.is_empty();
    let more = if is_bare { ", but without a recipient" } else { "" };
    done_if(!is_bare, name, format!("{announced}, healthy{more}"), || {
        "the new KEK has no recovery recipient: hold its ceremony with one, before seeds are sealed with it".to_owned()
    })
}

/// Activations of one KEK that are looked through.
const MOST_EPOCHS: u64 = 64;

fn table(args: &GuideArgs, facts: &Facts) -> Step {
    let name = "the rewrap table has every lost seed";
    let made = match &facts.table {
        None if facts.is_rewritten() => return done(name, "no longer needed".to_owned()),
        None => return open(name, NOT_GIVEN.to_owned(), rewrap(args, facts)),
        Some(Err(why)) => return open(name, why.clone(), rewrap(args, facts)),
        Some(Ok(table)) => table,
    };
    if let Some(Ok(announced)) = &facts.plugin
        && made.origin().sealed_with != *announced
    {
        let found = format!("it is sealed with {}, the plugin announces {announced}", made.origin().sealed_with);
        return open(name, found, rewrap(args, facts));
    }
    let (has, all) = (has(facts), facts.lost.len());
    let found = format!("{has} of {all} seeds, made {}", made.origin().made);
    done_if(is_table_whole(args, facts), name, found, || rewrap(args, facts))
}

fn has(facts: &Facts) -> usize {
    let Some(Ok(table)) = &facts.table else { return 0 };
    facts.lost.iter().filter(|digest| table.find(digest).is_some()).count()
}

fn is_table_whole(args: &GuideArgs, facts: &Facts) -> bool {
    let has = has(facts);
    has > 0 && (has == facts.lost.len() || args.partial)
}

fn served(args: &GuideArgs, facts: &Facts) -> Step {
    let name = "the plugin opens every lost seed through it";
    if facts.is_rewritten() {
        return done(name, "no longer needed".to_owned());
    }
    let (served, why) = &facts.served;
    let all = facts.lost.len();
    let why = why.as_deref().map(|why| format!("; it says: {why}")).unwrap_or_default();
    let is_enough = *served > 0 && (*served == all || args.partial && *served == has(facts));
    done_if(is_enough, name, format!("{served} of {all} seeds{why}"), || {
        let table = args.table.as_deref().map_or("/PATH/OF/THE/TABLE".into(), |table| table.display().to_string());
        format!(
            "on each control-plane node, copy the table, add this line to the section kek of the plugin's configuration, and restart \
             the plugin:\n  rewrap_table: {table}\n  systemctl restart hsm-kms"
        )
    })
}

fn restored(args: &GuideArgs, facts: &Facts) -> Step {
    let name = "etcd is restored";
    let live = match &facts.live {
        None => {
            let next = format!(
                "restore it as your distribution says, such as\n  etcdctl snapshot restore {} --data-dir /var/lib/etcd\nand then",
                args.snapshot.display()
            );
            return open(name, "no endpoint given yet".to_owned(), again(args, &next, "--endpoint URL"));
        }
        Some(Err(why)) => {
            return open(name, why.clone(), "start etcd, and check the endpoint and its certificates".to_owned());
        }
        Some(Ok(live)) => live,
    };
    let Live { found, present, .. } = live;
    let all = facts.backup.seeds.objects;
    let text = format!("{present} of the backup's {all} objects are there, {} in all", found.seeds.objects);
    // Once objects were rewritten the cluster lives, and deletes some.
    let is_alive = facts
        .plugin
        .as_ref()
        .and_then(|plugin| plugin.as_ref().ok())
        .is_some_and(|announced| found.seeds.found.values().any(|seed| seed.key_id == announced.as_str()));
    done_if(*present == all || *present > 0 && is_alive, name, text, || {
        "it is not what this backup holds: restore this one, or give the backup that was restored".to_owned()
    })
}

fn rewritten(facts: &Facts) -> Step {
    let name = "the API server has rewritten every object";
    let Some(Ok(live)) = &facts.live else { return open(name, NOT_GIVEN.to_owned(), "restore etcd first".to_owned()) };
    let found = format!("{} objects still need a lost KEK", live.need_lost);
    done_if(facts.is_rewritten(), name, found, || {
        "start the API servers; when they are ready, rewrite each encrypted resource. For secrets:\n  \
         kubectl get secrets --all-namespaces -o json | kubectl replace -f -\nFor others, and by storage migration:\n  \
         hsm-kms etcd rewrite-plan --kubernetes 1.34 --resource secrets"
            .to_owned()
    })
}

fn dropped(args: &GuideArgs, facts: &Facts) -> Step {
    let name = "the table is dropped";
    let (served, _) = &facts.served;
    if !facts.is_rewritten() {
        return open(
            name,
            "it is needed until everything is rewritten".to_owned(),
            "rewrite everything first".to_owned(),
        );
    }
    done_if(*served == 0, name, format!("the plugin opens {served} lost seeds"), || {
        let kept = args
            .table
            .as_deref()
            .map_or(String::new(), |table| format!(" Keep {} beside the backup.", table.display()));
        format!(
            "take the line rewrap_table out of the plugin's configuration on each node, and restart it.{kept}\n  \
             systemctl restart hsm-kms"
        )
    })
}

fn safe_again(args: &GuideArgs, facts: &Facts) -> Step {
    let name = "what is stored now can be recovered again";
    let Some(Ok(live)) = &facts.live else { return open(name, NOT_GIVEN.to_owned(), "restore etcd first".to_owned()) };
    let record = facts.record.as_ref().and_then(|record| record.as_ref().ok());
    let expected: Option<BTreeSet<String>> =
        record.map(|record| record.recipients.iter().map(|recipient| recipient.fingerprint().annotation()).collect());
    let (covered, objects) = Audit::of(&live.found, expected.as_ref()).objects();
    let found = format!("{covered} of {objects} objects are sealed to a recipient of the record");
    done_if(facts.is_rewritten() && expected.is_some() && covered == objects, name, found, || {
        let endpoint = args.endpoint.as_deref().unwrap_or("URL");
        format!("see which are not, and rewrite them:\n  hsm-kms recovery audit --endpoint {endpoint} --record FILE")
    })
}

/// The command that makes the table.
fn rewrap(args: &GuideArgs, facts: &Facts) -> String {
    let text = |path: &Option<std::path::PathBuf>, or: &str| {
        path.as_ref().map_or(or.to_owned(), |path| path.display().to_string())
    };
    let cluster = match &facts.record {
        Some(Ok(record)) => record.cluster.to_string(),
        _ => "NAME".to_owned(),
    };
    format!(
        "make it, where the private half is; a table that is there already must be moved away:\n  hsm-kms recovery rewrap --snapshot {} \
         \\\n    --key {} --cluster {cluster} \\\n    --socket {} --table {}{}",
        args.snapshot.display(),
        text(&args.key, "FILE"),
        text(&args.socket, "PATH"),
        text(&args.table, "rewrap-table.json"),
        if args.partial { " --partial" } else { "" },
    )
}

/// This command once more, with a further argument.
fn again(args: &GuideArgs, why: &str, more: &str) -> String {
    let mut command = format!("hsm-kms recovery guide --snapshot {}", args.snapshot.display());
    for (flag, value) in
        [("--key", &args.key), ("--record", &args.record), ("--socket", &args.socket), ("--table", &args.table)]
    {
        if let Some(value) = value
            && !more.starts_with(flag)
        {
            command = format!("{command} \\\n    {flag} {}", value.display());
        }
    }
    if !more.is_empty() {
        command = format!("{command} \\\n    {more}");
    }
    format!("{why}\n  {command}")
}

fn done(name: &'static str, found: String) -> Step {
    Step { name, state: State::Done, found, next: None }
}

fn open(name: &'static str, found: String, next: String) -> Step {
    Step { name, state: State::Open, found, next: Some(next) }
}

fn done_if(is_done: bool, name: &'static str, found: String, next: impl FnOnce() -> String) -> Step {
    if is_done { done(name, found) } else { open(name, found, next()) }
}
