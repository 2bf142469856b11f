use std::time::Duration;

use crate::run::ahead;
use crate::sheet::{Document, Section, Status};

#[test]
fn the_time_left_is_that_of_last_time_or_the_plans() {
    let mut before = Document::default();
    for (name, took_s) in [("start", 60.0), ("drain", 600.0)] {
        let section = Section { took_s, status: Status::Measured, ..Section::default() };
        before.sections.insert(name.to_owned(), section);
    }
    let said = |names: &[&str], at| ahead(names, at, &before, Duration::from_secs(50 * 60 + 1));
    assert_eq!(said(&["start", "drain"], 0), "section 1 of 2: start; about 11 min left, as last time");
    assert_eq!(said(&["start", "drain"], 1), "section 2 of 2: drain; about 10 min left, as last time");
    assert_eq!(said(&["start", "keys"], 0), "section 1 of 2: start; 51 min left at most", "keys never ran");
}
