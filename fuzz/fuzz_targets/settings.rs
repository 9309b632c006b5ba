#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    outbox_relay::fuzzing::settings(input);
    projector::fuzzing::settings(input);
});
