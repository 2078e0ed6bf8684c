//! What must not compile, and the message that says what to do instead.

#[test]
fn b42_a_capturing_closure_on_processes_does_not_compile_and_the_message_says_what_to_do() {
    let cases = trybuild::TestCases::new();
    // Makes trybuild build, and not only check. A function that captures is found when code is
    // generated for it.
    cases.pass("cases/three_ways_out.rs");
    cases.compile_fail("cases/captures_a_reference.rs");
    cases.compile_fail("cases/captures_by_value.rs");
    cases.compile_fail("cases/captures_what_cannot_be_cloned.rs");
    cases.compile_fail("cases/context_and_capture.rs");
    cases.compile_fail("cases/not_in_the_list.rs");
    cases.compile_fail("cases/no_serde.rs");
    cases.compile_fail("cases/threads_not_send.rs");
    cases.compile_fail("cases/process_captures.rs");
    cases.compile_fail("cases/process_captures_what_cannot_be_cloned.rs");
    cases.compile_fail("cases/process_returns_a_value.rs");
}

#[test]
fn b73_b76_parts_of_a_shared_array_can_neither_be_kept_nor_had_twice() {
    let cases = trybuild::TestCases::new();
    cases.pass("cases/array_ways.rs");
    cases.compile_fail("cases/array_view_outlives_array.rs");
    cases.compile_fail("cases/array_chunk_escapes.rs");
    cases.compile_fail("cases/array_chunk_captures.rs");
    cases.compile_fail("cases/array_atomic_floats.rs");
    cases.compile_fail("cases/closure_chunk_types.rs");
}

#[test]
fn b116_what_cannot_cross_is_told_with_the_way_out() {
    let cases = trybuild::TestCases::new();
    cases.pass("cases/generic_ways.rs");
    cases.compile_fail("cases/items_by_reference.rs");
    cases.compile_fail("cases/items_of_text.rs");
    cases.compile_fail("cases/items_with_a_lock_of_threads.rs");
    cases.compile_fail("cases/shared_map.rs");
    cases.compile_fail("cases/boxed_error.rs");
    cases.compile_fail("cases/closure_without_a_list.rs");
    cases.compile_fail("cases/closure_of_a_field.rs");
    cases.compile_fail("cases/closure_of_two_arguments.rs");
    cases.compile_fail("cases/closure_on_a_reference.rs");
    cases.compile_fail("cases/generic_functions.rs");
}

#[test]
fn b136_a_policy_asks_for_copies_only_where_it_needs_them_and_the_message_says_so() {
    let cases = trybuild::TestCases::new();
    cases.pass("cases/retry_ways.rs");
    cases.compile_fail("cases/retry_without_clone.rs");
    cases.compile_fail("cases/retry_of_a_reduction.rs");
}

#[test]
fn what_a_pool_asks_of_its_engine_cannot_be_called_from_outside() {
    let cases = trybuild::TestCases::new();
    // As above: a check would be one more build of what the programs need.
    cases.pass("cases/three_ways_out.rs");
    cases.compile_fail("cases/engine_from_outside.rs");
}
