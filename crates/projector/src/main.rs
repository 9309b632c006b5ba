//! The projector's command line.
fn main() {}
