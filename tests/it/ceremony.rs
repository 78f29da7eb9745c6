//! Ceremonies before people, held on real tokens: on a terminal, by files of answers, cut off anywhere, and lied to.

mod bad_plan;
mod copies;
mod custodians;
mod endings;
mod imports_of_keks;
mod interrupted;
mod lies;
mod power_cuts;
mod recipients;
mod rehearsals;
mod restoring;
mod rotations;
mod script;
mod secrets;
mod shares_interrupted;
pub mod staged;
pub mod terminal;
mod whole;
mod wrong_answers;
