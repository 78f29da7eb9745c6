//! The PIN is wrong, cannot be had, or must not be risked: how often it is tried, and where it must not be found.

use std::fs::{self, File, Permissions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::faults::{Down, Served, WRONG_PIN, encrypt, faults, flags, log_in_wrongly, until};
use crate::harness::{Config, Plugin, program, text};

const REFUSED: &str = "pin-or-config: the token refused the login; it is not tried again";
const NO_PIN: &str = "pin-or-config: the PIN source cannot be used";
const AT_RISK: &str = "pin-or-config: the token's PIN is locked or on its last try; no login was tried";

/// The tenth of `traps`.
pub async fn a_wrong_pin_is_tried_once_at_the_start_and_once_per_hangup() {
    let mut served = Served::new().await;
    let spy = served.spy();
    served.put_pin(WRONG_PIN);
    let plugin = Plugin::start(&served.config);
    let refused = refused();
    served.is_down(&plugin, 1, &refused).await;
    for times in [2, 3] {
        plugin.hang_up();
        served.is_down(&plugin, times, &refused).await;
    }
    // Longer than the first pauses between the starts that a token which is away would get.
    keep_asking(&served, &plugin, Duration::from_secs(3)).await;
    served.is_down(&plugin, 3, &refused).await;
    assert_eq!((spy.starts(), spy.wrong_logins(&served.token)), (3, 3));

    served.put_pin(&served.pin);
    plugin.hang_up();
    served.heals(&plugin).await;
}

/// The operator mends the PIN source of a plugin that serves, and gets it wrong.
#[tokio::test]
async fn a_hangup_with_a_wrong_pin_ends_the_service_and_is_undone_by_the_next() {
    let served = Served::new().await;
    let plugin = Plugin::start(&served.config).healthy().await;
    served.put_pin(WRONG_PIN);
    plugin.hang_up();
    served.is_down(&plugin, 1, &refused()).await;

    // While it tries again it has nothing to be healthy by.
    plugin.hang_up();
    let mut client = plugin.client().await;
    until("the second try", async || {
        assert_ne!(served.healthz(&mut client).await, "ok");
        faults(&plugin).len() == 2
    })
    .await;
    served.is_down(&plugin, 2, &refused()).await;

    served.put_pin(&served.pin);
    plugin.hang_up();
    served.heals(&plugin).await;
}

/// On SoftHSM2, which never locks a PIN, the same tries leave it usable.
#[tokio::test]
async fn a_pin_on_its_last_try_or_locked_is_not_tried() {
    let mut served = Served::new().await;
    let spy = served.spy();
    let locks = served.token.profile != "softhsm2";
    let states = [(9, "final user PIN try", "CKF_USER_PIN_FINAL_TRY"), (1, "user PIN locked", "CKF_USER_PIN_LOCKED")];
    for (times, (tries, flag, name)) in (1..).zip(states) {
        for _ in 0..tries {
            log_in_wrongly(&served.token);
        }
        assert_eq!(flags(&served.token).contains(flag), locks, "{}", flags(&served.token));
        let mut plugin = Plugin::start(&served.config);
        if locks {
            let down = Down {
                healthz: AT_RISK,
                why: format!("token \"kek\" flags {name}: no PIN was tried"),
                hint: "have the security officer reset the user PIN",
            };
            served.is_down(&plugin, times, &down).await;
            // A login with this PIN, the right one, would have cleared the flag.
            assert!(flags(&served.token).contains(flag), "{}", flags(&served.token));
        } else {
            served.heals(&plugin).await;
        }
        plugin.stop().await;
        assert_eq!(spy.starts(), times);
    }
}

#[tokio::test]
async fn a_pin_file_that_holds_no_pin_is_not_tried() {
    let mut served = Served::new().await;
    let spy = served.spy();
    let file = served.token.pin.clone();
    let (line, ways) = ("write the PIN, and nothing else, on one line", "a plain file of the service's user");
    let two = format!("{WRONG_PIN}\n{WRONG_PIN}\n");
    let cases: [(&dyn Fn(), &str, &str); 7] = [
        (&|| fs::set_permissions(&file, Permissions::from_mode(0o604)).unwrap(), "other users may read", ways),
        (&|| fs::set_permissions(&file, Permissions::from_mode(0o620)).unwrap(), "other users may read", ways),
        (&|| served.put_pin(""), "is empty", line),
        (&|| served.put_pin("\n"), "is empty", line),
        (&|| served.put_pin(&two), "is more than one line", line),
        (&|| fs::remove_file(&file).unwrap(), "No such file or directory", "check that the file exists"),
        (&|| fs::create_dir(&file).unwrap(), "not a plain file", ways),
    ];
    served.put_pin(WRONG_PIN);
    let mut plugin = None;
    for (times, (spoil, why, hint)) in (1..).zip(cases) {
        spoil();
        match &plugin {
            None => plugin = Some(Plugin::start(&served.config)),
            Some(plugin) => plugin.hang_up(),
        }
        let down = Down { healthz: NO_PIN, why: why.to_owned(), hint };
        served.is_down(plugin.as_ref().unwrap(), times, &down).await;
    }
    assert_eq!(spy.wrong_logins(&served.token), 0);

    fs::remove_dir(&file).unwrap();
    served.put_pin(&served.pin);
    let plugin = plugin.unwrap();
    plugin.hang_up();
    served.heals(&plugin).await;
}

#[tokio::test]
async fn a_pin_from_the_environment_opens_the_token() {
    let mut served = Served::new().await;
    served.config.value["token"]["pin"] = json!({"environment": "TOKEN_PIN"});
    let plugin = Plugin::start(&served.config);
    served.is_down(&plugin, 1, &no_pin("PIN environment variable TOKEN_PIN is not set", "set the variable")).await;
    drop(plugin);
    let mut command = program();
    command.env("TOKEN_PIN", served.pin.trim_end());
    opens_the_token(&served, command).await;
}

#[tokio::test]
async fn a_pin_from_a_credential_opens_the_token() {
    let mut served = Served::new().await;
    served.config.value["token"]["pin"] = json!({"credential": "token-pin"});
    let plugin = Plugin::start(&served.config);
    served.is_down(&plugin, 1, &no_pin("CREDENTIALS_DIRECTORY is not set", "LoadCredential=")).await;
    drop(plugin);
    let credentials = served.token.directory().join("credentials");
    fs::create_dir(&credentials).unwrap();
    fs::rename(&served.token.pin, credentials.join("token-pin")).unwrap();
    // As systemd leaves it for a unit with a user of its own: an ACL shows as group bits.
    fs::set_permissions(credentials.join("token-pin"), Permissions::from_mode(0o440)).unwrap();
    let mut command = program();
    command.env("CREDENTIALS_DIRECTORY", &credentials);
    opens_the_token(&served, command).await;
}

#[tokio::test]
async fn a_pin_from_a_descriptor_opens_the_token() {
    let mut served = Served::new().await;
    served.config.value["token"]["pin"] = json!({"descriptor": 3});
    let inherit = |file: &str| {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exec 3<\"$0\"; exec \"$@\"", file]).arg(program().get_program());
        command
    };
    let plugin = Plugin::start_by(&served.config, inherit("/dev/null"));
    served.is_down(&plugin, 1, &no_pin("PIN file /proc/self/fd/3: not a plain file", "a plain file")).await;
    drop(plugin);
    opens_the_token(&served, inherit(&text(&served.token.pin))).await;
}

#[tokio::test]
async fn only_the_worker_has_the_pin() {
    let mut served = Served::new().await;
    served.config.value["log"] = json!({"level": "trace"});
    let plugin = Plugin::start(&served.config);
    served.heals(&plugin).await;
    plugin.hang_up();
    keep_asking(&served, &plugin, Duration::from_millis(500)).await;
    served.heals(&plugin).await;

    let front = plugin.pid().as_raw_nonzero().get();
    let pin = served.pin.trim_end();
    let memory = Memory::of(front);
    assert!(memory.holds(&text(&served.token.pin)), "the search finds not even the path of the PIN file");
    assert!(!memory.holds(pin));
    let worker = worker_of(front);
    for process in [front, worker] {
        for file in ["cmdline", "environ"] {
            let bytes = fs::read(format!("/proc/{process}/{file}")).unwrap();
            assert!(!bytes.is_empty() && !contains(&bytes, pin.as_bytes()), "the PIN is in {file}");
        }
    }
    let log = plugin.log();
    assert!(log.contains("TRACE") && !log.contains(pin));
}

/// Starts the plugin, and has the PIN read once more; it is in no log.
async fn opens_the_token(served: &Served, command: Command) {
    let mut config = Config::new(&served.token, &served.record, "trace");
    config.value["token"]["pin"] = served.config.value["token"]["pin"].clone();
    config.value["log"] = json!({"level": "trace"});
    let plugin = Plugin::start_by(&config, command);
    served.heals(&plugin).await;
    plugin.hang_up();
    until("the second worker", async || plugin.log().matches("token ready").count() == 2).await;
    served.heals(&plugin).await;
    assert!(plugin.log().contains("TRACE"));
}

/// Calls Status and Encrypt, one after the other, for so long.
async fn keep_asking(served: &Served, plugin: &Plugin, time: Duration) {
    let mut client = plugin.client().await;
    let end = Instant::now() + time;
    while Instant::now() < end {
        served.healthz(&mut client).await;
        let _ = encrypt(&mut client).await;
    }
}

fn refused() -> Down {
    let why = "C_Login returned CKR_PIN_INCORRECT".to_owned();
    Down { healthz: REFUSED, why, hint: "put the right PIN into the PIN source, then send SIGHUP" }
}

fn no_pin(why: &str, hint: &'static str) -> Down {
    Down { healthz: NO_PIN, why: why.to_owned(), hint }
}

/// The one child of the front.
fn worker_of(front: i32) -> i32 {
    let children = fs::read_to_string(format!("/proc/{front}/task/{front}/children")).unwrap();
    children.trim().parse().unwrap()
}

/// What a process has in its memory and may read.
struct Memory(Vec<Vec<u8>>);

impl Memory {
    fn of(process: i32) -> Self {
        let mut memory = File::open(format!("/proc/{process}/mem")).unwrap();
        let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
        let read = |line: &str| {
            let (range, rest) = line.split_once(' ')?;
            let (start, end) = range.split_once('-')?;
            let [start, end] = [start, end].map(|address| u64::from_str_radix(address, 16).unwrap());
            // The kernel's own pages are not to be had by this file.
            let has_pages = rest.starts_with('r') && !line.contains("[vvar") && !line.ends_with("[vsyscall]");
            let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
            has_pages.then(|| {
                memory.seek(SeekFrom::Start(start)).unwrap();
                memory.read_exact(&mut bytes).unwrap_or_else(|error| panic!("{line}: {error}"));
                bytes
            })
        };
        Self(maps.lines().filter_map(read).collect())
    }

    fn holds(&self, text: &str) -> bool {
        self.0.iter().any(|region| contains(region, text.as_bytes()))
    }
}

fn contains(bytes: &[u8], sought: &[u8]) -> bool {
    bytes.windows(sought.len()).any(|window| window == sought)
}
