//! The steps of a ceremony: one table, from which the run, the printed script and the report are made.

use super::people::Role;
use super::plan::{Plan, WitnessedPlan};

/// A step of a ceremony.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Its name in the transcript.
    pub id: StepId,
    /// The part of the ceremony that it belongs to.
    pub act: Act,
    /// In a few words.
    pub title: &'static str,
    /// Who acts.
    pub owner: Owner,
    /// What is done.
    pub what: &'static str,
    /// Why.
    pub why: &'static str,
    /// How long it takes, in minutes.
    pub minutes: u32,
    /// What the person who keeps the printed script ticks or fills in.
    pub notes: &'static [Note],
}

/// Something on the printed script to be filled in by hand.
#[derive(Clone, Copy, Debug)]
pub enum Note {
    /// A box to tick.
    Tick(&'static str),
    /// A line to write on.
    Blank(&'static str),
    /// A line for each person: name, signature, time.
    People,
    /// The twelve words of the plan, printed, with a box.
    PlanWords,
    /// Twelve blanks, for words that are read aloud.
    Words,
}

/// A part of a ceremony.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Act {
    /// People, clock, plan, program.
    Opening,
    /// What can be checked before anything is touched.
    Preflight,
    /// The key is made and proved.
    Key,
    /// How the KEK outlives its token.
    Backup,
    /// The end of a KEK.
    End,
    /// Record, signatures, bags.
    Closing,
}

/// Who acts in a step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Owner {
    /// Everybody, one after the other.
    Everybody,
    /// The one with this role.
    One(Role),
    /// The two who keep the halves of the PIN.
    PinHolders,
    /// Each custodian, alone.
    EachCustodian,
    /// The program; all watch.
    Program,
}

/// The names of the steps.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum StepId {
    /// Everybody signs in.
    People,
    /// The machine's clock against the wall clock.
    Clock,
    /// The plan against the printed script.
    Plan,
    /// Who else can open what the KEK seals.
    Recipients,
    /// The program's digest.
    Program,
    /// Machine, module and token.
    Preflight,
    /// The one login.
    Login,
    /// The KEK is made in the HSM.
    Generate,
    /// The KEK is made in memory, for m-of-n import.
    Make,
    /// Each custodian gets a share.
    Shares,
    /// The shares restore the KEK.
    Drill,
    /// The KEK goes into the token.
    Import,
    /// Every attribute, read back.
    ReadBack,
    /// What the token must refuse.
    NegativeTests,
    /// The proof blobs.
    Proofs,
    /// Nothing needs the KEK any more.
    Unused,
    /// The KEK is destroyed on every token.
    Destroy,
    /// Copies on other tokens.
    Copies,
    /// The vendor's attestation.
    Attestation,
    /// `kek-record.json`.
    Record,
    /// The end.
    Closing,
}

impl Act {
    /// Its heading.
    pub fn title(self) -> &'static str {
        match self {
            Self::Opening => "Opening",
            Self::Preflight => "Preflight",
            Self::Key => "The key",
            Self::Backup => "Backup",
            Self::End => "The end of the KEK",
            Self::Closing => "Closing",
        }
    }
}

impl StepId {
    /// As transcripts write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::People => "people",
            Self::Clock => "clock",
            Self::Plan => "plan",
            Self::Recipients => "recipients",
            Self::Program => "program",
            Self::Preflight => "preflight",
            Self::Login => "login",
            Self::Generate => "generate",
            Self::Make => "make",
            Self::Shares => "shares",
            Self::Drill => "drill",
            Self::Import => "import",
            Self::ReadBack => "read-back",
            Self::NegativeTests => "negative-tests",
            Self::Proofs => "proofs",
            Self::Unused => "unused",
            Self::Destroy => "destroy",
            Self::Copies => "copies",
            Self::Attestation => "attestation",
            Self::Record => "record",
            Self::Closing => "closing",
        }
    }
}

/// The steps of this plan, in order.
pub fn steps(plan: &Plan, witnessed: &WitnessedPlan) -> Vec<Step> {
    let is_import = witnessed.import.is_some();
    let has_recipients = !plan.recipients.is_empty();
    if witnessed.destroys.is_some() {
        let is_kept = |step: &Step| {
            matches!(step.act, Act::Opening | Act::Preflight | Act::End) && step.id != StepId::Recipients
                || step.id == StepId::Closing
        };
        return ALL.into_iter().filter(is_kept).collect();
    }
    ALL.into_iter()
        .filter(|step| match step.id {
            StepId::Recipients => has_recipients,
            StepId::Generate => !is_import,
            StepId::Make | StepId::Shares | StepId::Drill | StepId::Import => is_import,
            StepId::Unused | StepId::Destroy => false,
            _ => true,
        })
        .collect()
}

/// Every step that there is.
const ALL: [Step; 21] = [
    Step {
        id: StepId::People,
        act: Act::Opening,
        title: "Everybody signs in",
        owner: Owner::Everybody,
        what: "Each person types the name that stands in the plan, and signs the printed script.",
        why: "No one person can make, change or hide a KEK if several who answer for it are there. The record names them.",
        minutes: 3,
        notes: &[Note::People],
    },
    Step {
        id: StepId::Clock,
        act: Act::Opening,
        title: "Compare the clocks",
        owner: Owner::One(Role::Operator),
        what: "The operator reads the time, in UTC, from a clock that is not this machine's, and types it.",
        why: "The times in the transcript prove nothing if the machine's clock is wrong.",
        minutes: 1,
        notes: &[Note::Blank("Time on the wall clock (UTC)")],
    },
    Step {
        id: StepId::Plan,
        act: Act::Opening,
        title: "Compare the plan",
        owner: Owner::One(Role::Witness),
        what: "The witness reads the twelve words on the screen aloud; all compare them with their printed script.",
        why: "The plan is the only input. The same words mean that nobody changed it since it was agreed to.",
        minutes: 2,
        notes: &[Note::PlanWords],
    },
    Step {
        id: StepId::Recipients,
        act: Act::Opening,
        title: "Compare the recovery recipients",
        owner: Owner::One(Role::Operator),
        what: "For each recovery key of the plan, the operator types the first 16 digits of its fingerprint from the paper of those who keep it.",
        why: "Whoever has such a key can read every secret without the HSM. It must be the key that was agreed to, and nobody else's.",
        minutes: 2,
        notes: &[Note::Tick("The paper came from those who keep the key, not with the plan")],
    },
    Step {
        id: StepId::Program,
        act: Act::Opening,
        title: "Identify the program",
        owner: Owner::One(Role::Witness),
        what: "The screen shows version and SHA-256 of this program. The witness compares them with the release.",
        why: "Everything that follows is only as honest as the program that does it.",
        minutes: 2,
        notes: &[Note::Blank("First 8 digits of the program's SHA-256"), Note::Tick("They are those of the release")],
    },
    Step {
        id: StepId::Preflight,
        act: Act::Preflight,
        title: "Check machine and token",
        owner: Owner::Program,
        what: "Module, token, its flags, mechanisms and randomness, and the machine are looked at. Nothing is changed, nobody logs in.",
        why: "A wrong token or a machine that swaps is found while nothing has happened yet.",
        minutes: 1,
        notes: &[Note::Blank("Serial number on the token's case"), Note::Tick("It is the one on the screen")],
    },
    Step {
        id: StepId::Login,
        act: Act::Key,
        title: "Log in",
        owner: Owner::PinHolders,
        what: "Each of the two types a half of the PIN; the other looks away. There is one attempt.",
        why: "Nobody knows the whole PIN. A wrong one is not tried again: many tokens lock at the third.",
        minutes: 2,
        notes: &[Note::Tick("Each saw only their own half")],
    },
    Step {
        id: StepId::Generate,
        act: Act::Key,
        title: "Generate the KEK",
        owner: Owner::Program,
        what: "The token makes the KEK: AES-256, never extractable, for sealing and opening only. Its name must be free.",
        why: "A key that was never outside the HSM is known to nobody. Every attribute is said, since defaults are weak.",
        minutes: 1,
        notes: &[Note::Tick("The screen says that one key was made")],
    },
    Step {
        id: StepId::Make,
        act: Act::Key,
        title: "Make the KEK in memory",
        owner: Owner::Program,
        what: "The KEK is made from the token's randomness and the kernel's, in this machine's memory.",
        why: "HSMs that cannot copy a key to another can only be given the same one. The record says that it was made outside.",
        minutes: 1,
        notes: &[Note::Tick("The machine has no network, no disk but this one, and no camera sees the screen")],
    },
    Step {
        id: StepId::Shares,
        act: Act::Key,
        title: "Hand out the shares",
        owner: Owner::EachCustodian,
        what: "Each custodian comes alone, writes the share down, and types it back from the paper. Then the screen is cleared.",
        why: "A share that was miswritten is found today and not in ten years. Fewer shares than the threshold tell nothing.",
        minutes: 10,
        notes: &[Note::Tick("Nobody saw another's share"), Note::Blank("Numbers of the sealed envelopes")],
    },
    Step {
        id: StepId::Drill,
        act: Act::Key,
        title: "Restore the KEK from shares",
        owner: Owner::Program,
        what: "The shares that were typed back are brought together; what they restore must be the KEK.",
        why: "A backup that was never restored is a hope.",
        minutes: 1,
        notes: &[Note::Tick("The screen says that the shares restore the KEK")],
    },
    Step {
        id: StepId::Import,
        act: Act::Key,
        title: "Put the KEK into the token",
        owner: Owner::Program,
        what: "The KEK is unwrapped into the token, non-extractable. Once the copies have it too, it is wiped from memory.",
        why: "From here on this token does not give it away either.",
        minutes: 1,
        notes: &[Note::Tick("The screen says that one key was made")],
    },
    Step {
        id: StepId::ReadBack,
        act: Act::Key,
        title: "Read every attribute back",
        owner: Owner::Program,
        what: "In a new session, all attributes of the KEK are read from the token and compared with what they must be.",
        why: "What a token was asked for, and what it made, can differ.",
        minutes: 1,
        notes: &[Note::Tick("Every attribute is as it must be, or the plan permits it")],
    },
    Step {
        id: StepId::NegativeTests,
        act: Act::Key,
        title: "Try what must fail",
        owner: Owner::Program,
        what: "Reading the key, wrapping it under another, loosening an attribute, copying it loosened: all is really tried.",
        why: "A token that says \"sensitive\" and gives the key away is worth nothing.",
        minutes: 1,
        notes: &[Note::Tick("The token refused every attempt")],
    },
    Step {
        id: StepId::Proofs,
        act: Act::Key,
        title: "Seal the proof blobs",
        owner: Owner::Program,
        what: "The KEK seals three random challenges and opens them again. A changed one, and one out of context, must not open.",
        why: "Whoever opens one of these later has this very KEK, on whatever HSM.",
        minutes: 1,
        notes: &[Note::Tick("Three proof blobs were made")],
    },
    Step {
        id: StepId::Copies,
        act: Act::Backup,
        title: "Prove the copies",
        owner: Owner::One(Role::Administrator),
        what: "The administrator copies the KEK to the tokens that the plan names, with the vendor's tool. Each copy opens a proof blob.",
        why: "If the KEK has no second home, the loss of one device is the loss of the cluster's data.",
        minutes: 10,
        notes: &[Note::Blank("Serial numbers of the copies"), Note::Tick("Each copy opened a proof blob")],
    },
    Step {
        id: StepId::Attestation,
        act: Act::Backup,
        title: "Attestation",
        owner: Owner::Program,
        what: "If the vendor attests keys of this kind, the attestation is kept; if not, the record says \"none\".",
        why: "An auditor should not have to guess whether there was one.",
        minutes: 1,
        notes: &[],
    },
    Step {
        id: StepId::Unused,
        act: Act::End,
        title: "See that nothing needs the KEK",
        owner: Owner::One(Role::Witness),
        what: "Inventories of every etcd, and of every backup that is kept, must show no object that this KEK is needed for.",
        why: "A KEK that is destroyed too early takes the data with it, for good.",
        minutes: 5,
        notes: &[Note::Blank("Backups that still need it, and when they expire")],
    },
    Step {
        id: StepId::Destroy,
        act: Act::End,
        title: "Destroy the KEK",
        owner: Owner::PinHolders,
        what: "On each token: the key proves by its proof blobs that it is this KEK, is destroyed, and is looked for again.",
        why: "A key that is left on one token is not destroyed.",
        minutes: 5,
        notes: &[Note::Tick("Every token of the plan was there"), Note::Blank("Shares that were shredded")],
    },
    Step {
        id: StepId::Record,
        act: Act::Closing,
        title: "Write the record",
        owner: Owner::Program,
        what: "kek-record.json is written: which key this is, what was proved, who was there. It is public.",
        why: "The plugin accepts no key but the one of its record.",
        minutes: 1,
        notes: &[],
    },
    Step {
        id: StepId::Closing,
        act: Act::Closing,
        title: "Close the ceremony",
        owner: Owner::Everybody,
        what: "Two copies of the evidence go into numbered bags; the numbers are typed twice. The last words are read aloud and written down.",
        why: "The words seal the transcript: a changed one has others. Everybody signs them, here and with a key.",
        minutes: 5,
        notes: &[Note::Words, Note::Blank("Bag numbers"), Note::People],
    },
];
