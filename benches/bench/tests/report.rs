use crate::growth;
use crate::plan::Scale;
use crate::report::text;
use crate::sheet::{Document, Section, Status};

#[test]
fn cases_with_the_same_columns_share_a_table_and_nothing_is_made_up() {
    let mut document = Document::default();
    let mut section = Section { status: Status::Partly("it was late".into()), ..Section::default() };
    section.add("10 keys", "drain", "events/s", 20_000.0);
    section.add("1000 keys", "drain", "events/s", 10_000.0);
    section.add("1000 keys", "drain", "events/s", 30_000.0);
    section.add("1000 keys", "ratio", "ratio", 0.5);
    section.add("other", "start", "ms", 5.0);
    document.sections.insert(growth::NAME.to_owned(), section);
    let text = text(&document, &[], Scale::Full).unwrap();
    assert!(text.contains("| | drain, events/s | ratio |\n"), "{text}");
    assert!(text.contains("| 10 keys | 20,000 | – |\n"), "{text}");
    assert!(text.contains("| 1000 keys | 20,000 (10,000–30,000) | 0.50 |\n"), "{text}");
    assert!(text.contains("| other | |"), "{text}");
    assert!(text.contains("**Not complete: it was late.**"), "{text}");
    assert!(text.contains("## Latency\n\nNot measured: the section was not run."), "{text}");
}
