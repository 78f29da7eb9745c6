//! Ceremonies before people, held on real tokens: on a terminal, by files of answers, cut off anywhere, and lied to.

mod bad_plan;
mod copies;
mod interrupted;
mod lies;
mod power_cuts;
mod rehearsals;
mod script;
mod secrets;
mod staged;
mod terminal;
mod whole;
mod wrong_answers;
