//! Parses the command line, runs the command, prints its error and hint, exits.

fn main() {}
