use std::time::Duration;

use crate::schedule::start;

#[test]
fn moments_are_evenly_apart_however_late_they_are_taken() {
    let mut moments = start(Duration::from_millis(2), 5);
    std::thread::sleep(Duration::from_millis(20));
    let mut seen = Vec::new();
    while let Some(moment) = moments.blocking_recv() {
        seen.push(moment);
    }
    assert_eq!(seen.len(), 5);
    assert!(seen.windows(2).all(|pair| pair[1] - pair[0] == 2_000), "{seen:?}");
}
