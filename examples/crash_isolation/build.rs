//! Compiles the C library into the program.

fn main() {
    println!("cargo::rerun-if-changed=library");
    cc::Build::new()
        .file("library/port.c")
        .std("c11")
        .extra_warnings(true)
        .compile("port");
}
