//! Who takes part in a ceremony, and in which role.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use crate::record::Role;
use crate::strict::{self, Fault};

/// One person of a plan.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Person {
    /// Full name.
    #[serde(deserialize_with = "strict::from_text")]
    pub name: Name,
    /// What the person is there for.
    pub role: Role,
    /// The OpenSSH public key that the person signs with.
    #[serde(deserialize_with = "strict::from_text")]
    pub key: SigningKey,
}

/// The name of a person: 3 to 60 characters, with a blank between first and last name; no role and no placeholder.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Name(String);

/// An OpenSSH public key, `TYPE BASE64`, without comment and options (RFC 4253, section 6.6).
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct SigningKey(String);

/// The people of a plan: at least four, one of them the administrator, one the operator, at least one a witness, and with the
/// operator at least two who keep a part of the PIN.
#[derive(Clone, Debug)]
pub struct People(Vec<Person>);

impl People {
    /// These people, if they can hold a ceremony.
    pub fn new(people: Vec<Person>) -> Result<Self, Fault> {
        let rule = |problem: String, hint: &str| Fault::Rule { field: "people", problem, hint: hint.to_owned() };
        for (position, person) in people.iter().enumerate() {
            let mut before = people.iter().take(position);
            if let Some(same) = before.find(|other| other.is(&person.name.0) || other.key == person.key) {
                return Err(rule(
                    format!("{} and {} are one person", same.name, person.name),
                    "each person stands there once, with one role, a name and a key of their own",
                ));
            }
        }
        let people = Self(people);
        people.judge(|_| true).map_err(|lacking| {
            rule(lacking, "name at least an administrator, an operator, a witness and a custodian")
        })?;
        Ok(people)
    }

    /// All of them, in the plan's order.
    pub fn all(&self) -> &[Person] {
        &self.0
    }

    /// The first person with this role.
    pub fn first(&self, role: Role) -> Option<&Person> {
        self.0.iter().find(|person| person.role == role)
    }

    /// Whether those of them who are there can hold a ceremony; if not, what is lacking.
    pub fn judge(&self, is_there: impl Fn(&Person) -> bool) -> Result<(), String> {
        let count = |role| self.0.iter().filter(|person| person.role == role && is_there(person)).count();
        let [administrators, operators, witnesses, custodians] =
            [Role::Administrator, Role::Operator, Role::Witness, Role::Custodian].map(count);
        if administrators != 1 || operators != 1 {
            return Err(format!(
                "there must be one administrator and one operator, not {administrators} and {operators}"
            ));
        }
        if witnesses == 0 {
            return Err("there is no witness".to_owned());
        }
        if custodians == 0 {
            return Err(
                "there is no custodian: the operator and a custodian, or two custodians, keep the halves of the PIN"
                    .to_owned(),
            );
        }
        // Implied by the rest; said in full since it is the first thing that an auditor counts.
        let total = administrators + operators + witnesses + custodians;
        if total < FEWEST { Err(format!("{total} people are too few: at least {FEWEST}")) } else { Ok(()) }
    }

    /// The two who type a half of the PIN each: the first two custodians, or the one custodian and the operator.
    pub fn pin_holders(&self, is_there: impl Fn(&Person) -> bool) -> Vec<&Person> {
        let of = |role| self.0.iter().filter(move |person| person.role == role);
        of(Role::Custodian).chain(of(Role::Operator)).filter(|person| is_there(person)).take(2).collect()
    }
}

/// Fewest people at a ceremony.
const FEWEST: usize = 4;

impl Person {
    /// Whether this is the person's name, however it is written.
    pub fn is(&self, name: &str) -> bool {
        let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
        plain(&self.name.0) == plain(name)
    }
}

impl Name {
    /// The name as it stands in the plan.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl SigningKey {
    /// The key as it stands in the plan.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As `ssh-keygen -l` shows it: `SHA256:` and the digest in base64 without padding.
    pub fn fingerprint(&self) -> String {
        let blob = self.0.split(' ').nth(1).unwrap_or_default();
        let blob = data_encoding::BASE64.decode(blob.as_bytes()).unwrap_or_default();
        format!("SHA256:{}", data_encoding::BASE64_NOPAD.encode(&Sha256::digest(blob)))
    }
}

impl FromStr for Name {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_vague =
            text.split(|c: char| !c.is_alphabetic()).any(|word| VAGUE.contains(&word.to_lowercase().as_str()));
        if is_vague {
            return Err("expected the name of a person, not a role or a placeholder");
        }
        let letters = text.chars().all(|c| c.is_alphabetic() || matches!(c, ' ' | '-' | '.' | '\'' | '\u{2019}'));
        let fits = letters && (3..=60).contains(&text.chars().count()) && text.trim() == text && text.contains(' ');
        fits.then(|| Self(text.to_owned())).ok_or("expected first and last name, 3 to 60 letters")
    }
}

/// Words that say that nobody has been chosen yet, or that anybody will do.
const VAGUE: [&str; 17] = [
    "admin",
    "administrator",
    "anybody",
    "anyone",
    "auditor",
    "custodian",
    "employee",
    "fill",
    "name",
    "officer",
    "operator",
    "person",
    "somebody",
    "someone",
    "tba",
    "tbd",
    "witness",
];

impl FromStr for SigningKey {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(' ');
        let (kind, key, rest) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next());
        let bytes = data_encoding::BASE64.decode(key.as_bytes()).unwrap_or_default();
        // The blob begins with the length and text of its own type.
        let says = |blob: &[u8]| blob.get(4..4 + kind.len()) == Some(kind.as_bytes());
        let fits = KEY_TYPES.contains(&kind) && rest.is_none() && says(&bytes);
        fits.then(|| Self(text.to_owned())).ok_or("expected an OpenSSH public key as in NAME.pub, without its comment")
    }
}

/// Types of keys that OpenSSH signs with.
const KEY_TYPES: [&str; 7] = [
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "sk-ssh-ed25519@openssh.com",
    "ssh-ed25519",
    "ssh-rsa",
];

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn person(name: &str, role: Role, key: u8) -> Person {
        let mut blob = b"\0\0\0\x0bssh-ed25519\0\0\0 ".to_vec();
        blob.extend([key; 32]);
        let key = format!("ssh-ed25519 {}", data_encoding::BASE64.encode(&blob));
        Person { name: name.parse().unwrap(), role, key: key.parse().unwrap() }
    }

    fn four() -> Vec<Person> {
        vec![
            person("Ada Lovelace", Role::Administrator, 1),
            person("Grace Hopper", Role::Operator, 2),
            person("Emmy Noether", Role::Witness, 3),
            person("Mary Somerville", Role::Custodian, 4),
        ]
    }

    #[test]
    fn four_people_can_hold_a_ceremony() {
        let people = People::new(four()).unwrap();
        let holders: Vec<_> = people.pin_holders(|_| true).iter().map(|person| person.name.as_str()).collect();
        assert_eq!(holders, ["Mary Somerville", "Grace Hopper"]);
        assert!(people.judge(|person| person.role != Role::Witness).unwrap_err().contains("no witness"));
    }

    #[test]
    fn fingerprints_are_those_of_ssh_keygen() {
        let key = person("Ada Lovelace", Role::Witness, 1).key;
        assert_eq!(key.fingerprint(), "SHA256:RXm/ruZ0eTzRXKwi1AQEDynB0VgHQ2ac9KPSFdf/YnA");
    }

    #[test]
    fn nobody_stands_there_twice_and_no_role_is_missing() {
        for missing in 0..4 {
            let mut people = four();
            people.remove(missing);
            assert!(People::new(people).is_err());
        }
        for (twice, what) in
            [(person("ada  lovelace", Role::Witness, 9), "name"), (person("Ida Noddack", Role::Witness, 1), "key")]
        {
            let mut people = four();
            people.push(twice);
            assert!(People::new(people).unwrap_err().to_string().contains("are one person"), "{what}");
        }
        let mut people = four();
        people.push(person("Ida Noddack", Role::Administrator, 9));
        assert!(People::new(people).unwrap_err().to_string().contains("one administrator"));
    }

    #[test]
    fn vague_names_and_keys_are_refused() {
        for vague in [
            "Security Officer",
            "TBD TBD",
            "someone else",
            "FILL IN",
            "Ada",
            "the Witness",
            " Ada Lovelace",
            "A\nB C",
            "Ada 2 Lovelace",
        ] {
            assert!(vague.parse::<Name>().is_err(), "{vague}");
        }
        for name in ["José Núñez-O'Neill", "Ada King Lovelace", "李 小龙"] {
            assert!(name.parse::<Name>().is_ok(), "{name}");
        }
        let good = person("Ada Lovelace", Role::Witness, 1).key.0;
        for wrong in [
            "",
            "ssh-ed25519",
            &format!("{good} ada@host"),
            &good.replace("ssh-ed25519 ", "ssh-rsa "),
            "ssh-ed25519 AAAA",
        ] {
            assert!(wrong.parse::<SigningKey>().is_err(), "{wrong}");
        }
    }
}
