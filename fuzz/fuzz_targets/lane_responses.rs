//! What a corrupted worker may leave in its lane, and what the parent makes of it.
#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| manyhands::fuzzing::lane_responses(script));
