//! The ceremony on paper: the script that is printed before it, and the report that is printed after it.
//!
//! Each is one HTML file without script, network or font of its own, to be printed from any browser on A4 or Letter.

mod attributes;
mod frame;
mod report;
mod script;

use askama::Template;

pub use self::report::{Report, ReportEvent, report};
pub use self::script::script;

/// The document.
fn html(document: &impl Template) -> String {
    // Writing to a `String` does not fail.
    document.render().unwrap_or_default()
}
