//! What leaves the process for people and machines to see. Others write to it; it asks nobody.

pub mod endpoints;
pub mod log;
pub mod metrics;
