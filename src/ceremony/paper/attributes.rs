//! The attributes of the keys, each beside what it must be.

use super::super::Plan;
use super::super::generate::strict_for;
use super::super::keys::Keys;
use crate::attributes::{AttributeName, AttributeValue};
use crate::profile::{key_type_name, mechanism_name};
use crate::record::{CkaId, KekRecord};

/// A key, as the report shows it.
pub(super) struct KeyOnPaper<'a> {
    pub(super) label: &'a str,
    pub(super) id: &'a CkaId,
    pub(super) rows: Vec<Row>,
}

/// An attribute of it.
pub(super) struct Row {
    pub(super) name: AttributeName,
    pub(super) value: String,
    pub(super) must_be: String,
    pub(super) deviates: bool,
    pub(super) is_permitted: bool,
}

/// The keys of the record: the KEK, and the MAC key where there is one.
pub(super) fn keys<'a>(plan: &Plan, record: &'a KekRecord) -> Vec<KeyOnPaper<'a>> {
    let templates = Keys::new(plan);
    let kept = [Some(&record.kek), record.mac_key.as_ref()].into_iter().flatten();
    let keys = kept.zip(templates.all()).map(|(key, template)| {
        let strict = strict_for(template, templates.origin, &key.attributes);
        let rows = AttributeName::ALL.into_iter().map(|name| {
            let value = key.attributes.get(&name).unwrap_or(&AttributeValue::UNAVAILABLE);
            let must_be = strict.get(&name);
            Row {
                name,
                value: in_words(name, value),
                must_be: must_be.map_or_else(|| "either".to_owned(), |value| in_words(name, value)),
                is_permitted: plan.kek.permit.contains(&name),
                deviates: must_be.is_some_and(|must_be| must_be != value),
            }
        });
        KeyOnPaper { label: &key.label, id: &key.id, rows: rows.collect() }
    });
    keys.collect()
}

/// A value with the names that PKCS#11 has for numbers.
fn in_words(name: AttributeName, value: &AttributeValue) -> String {
    match (name, value) {
        (AttributeName::ValueLen, AttributeValue::Number(bytes)) => format!("{bytes} bytes"),
        (AttributeName::KeyType, AttributeValue::Number(number)) => key_type_name(*number),
        (_, AttributeValue::Number(number)) => mechanism_name(*number),
        (_, AttributeValue::Mechanisms(list)) => {
            list.iter().map(|number| mechanism_name(*number)).collect::<Vec<_>>().join(", ")
        }
        (_, value) => value.to_string(),
    }
}
