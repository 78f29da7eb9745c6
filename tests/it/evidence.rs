//! The evidence of a ceremony: no edit of it passes, and two programs that share no code agree on that.

mod forgeries;
mod mutations;
mod signing;
mod story;
