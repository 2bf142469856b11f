use crate::stats::{extremes, median, ratios};

#[test]
fn the_median_is_the_middle_of_odd_and_the_mean_of_even() {
    assert_eq!(median(&[]), None);
    assert_eq!(median(&[3.0]), Some(3.0));
    assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
    assert_eq!(median(&[4.0, 1.0, 2.0, 100.0]), Some(3.0));
}

#[test]
fn extremes_are_the_ends() {
    assert_eq!(extremes(&[]), None);
    assert_eq!(extremes(&[2.0, -1.0, 7.0]), Some((-1.0, 7.0)));
}

#[test]
fn ratios_go_pair_by_pair() {
    assert_eq!(ratios(&[1.0, 6.0, 5.0], &[2.0, 3.0]), [0.5, 2.0]);
    assert_eq!(ratios(&[1.0], &[0.0]), Vec::<f64>::new());
}
