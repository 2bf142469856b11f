use crate::plan::Scale;
use crate::sheet::{Document, Section, Status};

#[test]
fn runs_are_summed_up_and_compared_pair_by_pair() {
    let mut section = Section::default();
    for (relay, limit) in [(8.0, 10.0), (9.0, 9.0), (5.0, 10.0)] {
        section.add("base", "relay", "events/s", relay);
        section.add("base", "limit", "events/s", limit);
    }
    section.ratio("base", "ratio", "relay", "limit");
    // Once more, as after a further round, does not count twice.
    section.ratio("base", "ratio", "relay", "limit");
    let ratio = section.figure("base", "ratio").unwrap();
    assert_eq!(ratio.values, [0.8, 1.0, 0.5]);
    assert_eq!((ratio.median, ratio.min, ratio.max), (0.8, 0.5, 1.0));
}

#[test]
fn a_document_survives_its_file_and_forgets_the_other_scale() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("benchmark.json");
    let mut document = Document { schema: 1, ..Document::default() };
    let mut section = Section { status: Status::Partly("interrupted".into()), ..Section::default() };
    section.add("base", "relay", "events/s", 7.0);
    document.sections.insert("drain".into(), section);
    document.write(&path).unwrap();
    let read = Document::read(&path, Scale::Full);
    assert_eq!(read.figure("drain", "base", "relay").unwrap().values, [7.0]);
    assert_eq!(read.sections["drain"].status, Status::Partly("interrupted".into()));
    assert!(Document::read(&path, Scale::Quick).sections.is_empty());
    assert!(Document::read(&dir.path().join("none"), Scale::Full).sections.is_empty());
}
