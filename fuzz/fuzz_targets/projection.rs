#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| projector::fuzzing::projection(input));
