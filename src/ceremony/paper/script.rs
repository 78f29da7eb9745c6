//! The printed script: what everybody holds in their hands during the ceremony.

use askama::Template;

use super::super::steps::{Act, Note, Owner, Step, StepId, steps};
use super::super::transcript::CeremonyKind;
use super::super::{Person, Plan, TOOL, WitnessedPlan};
use super::frame::{Frame, Hex, origin};
use super::html;
use crate::record::Role;

/// The script of a plan, to be printed before the ceremony and filled in by hand.
pub fn script(plan: &Plan, witnessed: &WitnessedPlan, kind: CeremonyKind) -> String {
    let acts = acts(plan, witnessed);
    let all = || acts.iter().flat_map(|act| &act.steps);
    html(&Script {
        frame: Frame::new("Key ceremony script", plan, witnessed, kind),
        plan,
        witnessed,
        origin: origin(witnessed),
        minutes: all().map(|place| place.step.minutes).sum(),
        count: all().count(),
        tool: TOOL,
        acts: &acts,
        signers: witnessed.people.all(),
    })
}

/// Blank sheets for what does not go as planned.
const EXCEPTION_SHEETS: usize = 2;
/// Lines for bags: two copies of the evidence, and what else is sealed on the day.
const BAGS: usize = 6;

#[derive(Template)]
#[template(path = "script.html", config = "src/ceremony/paper/askama.toml")]
struct Script<'a> {
    frame: Frame<'a>,
    plan: &'a Plan,
    witnessed: &'a WitnessedPlan,
    origin: String,
    minutes: u32,
    count: usize,
    tool: &'static str,
    acts: &'a [ActOnPaper],
    /// Who signs the last page.
    signers: &'a [Person],
}

/// An act with its steps.
struct ActOnPaper {
    title: &'static str,
    minutes: u32,
    steps: Vec<Place>,
}

/// A step at its place.
struct Place {
    number: usize,
    step: Step,
    owner: String,
}

/// The steps of the plan, numbered through, by act.
fn acts(plan: &Plan, witnessed: &WitnessedPlan) -> Vec<ActOnPaper> {
    let places = steps(plan, witnessed).into_iter().zip(1..).map(|(step, number)| {
        let owner = owner(step.owner, witnessed);
        Place { number, step, owner }
    });
    let places: Vec<_> = places.collect();
    let mut places = places.into_iter().peekable();
    let mut acts = Vec::new();
    while let Some(first) = places.next() {
        let act = first.step.act;
        let mut steps = vec![first];
        while let Some(place) = places.next_if(|place| place.step.act == act) {
            steps.push(place);
        }
        let minutes = steps.iter().map(|place| place.step.minutes).sum();
        acts.push(ActOnPaper { title: act.title(), minutes, steps });
    }
    acts
}

/// Who acts, by name.
fn owner(owner: Owner, witnessed: &WitnessedPlan) -> String {
    let people = &witnessed.people;
    let named = |person: &Person| format!("{} ({})", person.name, person.role.word());
    let list = |people: Vec<&Person>| people.into_iter().map(named).collect::<Vec<_>>().join(", ");
    match owner {
        Owner::Everybody => "Everybody, one after the other".to_owned(),
        Owner::One(role) => people.first(role).map(named).unwrap_or_default(),
        Owner::PinHolders => list(people.pin_holders(|_| true)),
        Owner::EachCustodian => {
            let custodians = people.all().iter().filter(|person| person.role == Role::Custodian).collect();
            format!("Each alone: {}", list(custodians))
        }
        Owner::Program => "The program; all watch".to_owned(),
    }
}
