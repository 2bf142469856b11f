use crate::goals::{all, number};
use crate::sheet::{Document, Section};
use crate::start;

#[test]
fn what_was_not_measured_is_not_met() {
    let goals = all(&Document::default());
    assert!(goals.len() > 15);
    assert!(goals.iter().all(|goal| goal.reached.is_none() && !goal.met));
}

#[test]
fn the_median_decides() {
    let mut document = Document::default();
    let mut section = Section::default();
    for values in [700.0, 480.0, 490.0] {
        section.add(start::CASES[0], start::FIGURE, "ms", values);
    }
    document.sections.insert(start::NAME.to_owned(), section);
    let goals = all(&document);
    let goal = goals.iter().find(|goal| goal.figure.starts_with("start")).unwrap();
    assert!(goal.met);
    assert_eq!(goal.reached.as_deref(), Some("490 ms (3 runs)"));
}

#[test]
fn numbers_are_short() {
    assert_eq!(number(0.954), "0.95");
    assert_eq!(number(12.34), "12.3");
    assert_eq!(number(4321.0), "4321");
    assert_eq!(number(1_234_567.0), "1,234,567");
}
