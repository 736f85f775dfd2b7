//! Links programs for tests at a fixed address: the loader then has no 200 000 pointers to move, which is two thirds of
//! what a short command of an unoptimised `pitr` costs.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    if is("PROFILE", "debug") && is("CARGO_CFG_TARGET_OS", "linux") {
        println!("cargo:rustc-link-arg-bins=-no-pie");
    }
}
