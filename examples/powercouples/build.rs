//! Compiles the C kernel into the program.

fn main() {
    println!("cargo::rerun-if-changed=kernel");
    cc::Build::new()
        .file("kernel/power.c")
        .std("c11")
        .extra_warnings(true)
        .compile("power");
}
