use crate::usage::{Machine, Usage};

#[test]
fn times_stand_behind_any_name() {
    let stat = "7 (a) b (c) ) S 1 7 7 0 -1 4194560 100 0 0 0 250 75 0 0 20 0 5 0 100 1000 10";
    let status = "Name:\tx\nVmHWM:\t   2000 kB\nVmRSS:\t   1000 kB\n";
    let usage = Usage::parse(stat, status).unwrap();
    assert_eq!((usage.user_s, usage.system_s), (2.5, 0.75));
    assert_eq!((usage.peak_mb, usage.resident_mb), (2.048, 1.024));
    assert!(Usage::parse("7 (a) S", status).is_none());
}

#[test]
fn this_process_has_used_something() {
    let usage = Usage::of(std::process::id()).unwrap();
    assert!(usage.peak_mb >= usage.resident_mb && usage.resident_mb > 1.0, "{usage:?}");
    assert!(Machine::here().cores > 0);
}
