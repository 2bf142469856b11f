use crate::plot::{nines, write};
use crate::sheet::{Curve, Document, Section};
use crate::{drain, latency};

#[test]
fn percentiles_are_stretched_towards_the_tail() {
    let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
    assert!(near(nines(0.0), 0.0) && near(nines(90.0), 1.0) && near(nines(99.9), 3.0));
    assert!(near(nines(100.0), 4.1));
}

#[test]
fn what_was_measured_is_drawn_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut document = Document::default();
    assert!(write(&document, dir.path()).unwrap().is_empty());
    let mut section = Section::default();
    section.add("poll: x", drain::RELAY, "events/s", 10.0);
    section.add("poll: x", drain::COMPOSITE, "events/s", 12.0);
    document.sections.insert(drain::NAME.to_owned(), section);
    let points = vec![(0.0, 1.0), (50.0, 2.0), (100.0, 9.0)];
    let curve = Curve { plot: "write to confirm".into(), name: "wal, 1/s".into(), points };
    let section = Section { curves: vec![curve], ..Section::default() };
    document.sections.insert(latency::NAME.to_owned(), section);
    let plots = write(&document, dir.path()).unwrap();
    let files: Vec<&str> = plots.iter().map(|plot| plot.file.as_str()).collect();
    assert_eq!(files, ["drain-poll.svg", "latency-wal.svg"]);
    for file in files {
        assert!(std::fs::read_to_string(dir.path().join(file)).unwrap().contains("<svg"));
    }
}
