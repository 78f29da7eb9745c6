//! What leaves the process for people to see. Others write to it; it asks nobody.

pub mod log;
