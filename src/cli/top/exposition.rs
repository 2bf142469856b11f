//! Reads the text format of Prometheus, version 0.0.4.
//!
//! The bytes come from whoever listens at a URL, so reading is total: a line that is no sample is counted and left out,
//! and there is a bound on samples, labels and their text. Comments (`# HELP`, `# TYPE`) and timestamps are not kept.
//!
//! <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>

/// Samples kept, at most; a relay has about 120.
const SAMPLES_MAX: usize = 20_000;
/// Labels of one sample, at most.
const LABELS_MAX: usize = 32;
/// Bytes of a name or of a label's value, at most.
const TEXT_MAX: usize = 1_024;

/// One line: `name{label="value",…} number`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    /// With its suffix, such as `_bucket`.
    pub(super) name: String,
    /// In the order of the line.
    pub(super) labels: Vec<(String, String)>,
    /// May be infinite or no number.
    pub(super) value: f64,
}

/// All samples of one answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Exposition {
    pub(super) samples: Vec<Sample>,
    /// Lines that are neither sample, comment nor empty, and what was beyond a bound.
    pub(super) skipped: usize,
}

impl Sample {
    /// A label's value.
    pub(super) fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(label, _)| label == name).map(|(_, value)| value.as_str())
    }
}

impl Exposition {
    /// Reads whatever there is.
    pub(super) fn parse(bytes: &[u8]) -> Exposition {
        let mut found = Exposition::default();
        // What is not UTF-8 becomes a replacement character: no name and no number holds one.
        for line in String::from_utf8_lossy(bytes).lines() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match sample(line) {
                Some(sample) if found.samples.len() < SAMPLES_MAX => found.samples.push(sample),
                _ => found.skipped += 1,
            }
        }
        found
    }

    /// Samples of that exact name.
    pub(super) fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| sample.name == name)
    }
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(|c: char| c == '{' || c.is_whitespace())?;
    let (name, rest) = line.split_at(end);
    if !is_name(name) {
        return None;
    }
    let rest = rest.trim_start();
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    let mut words = rest.split_whitespace();
    let value = number(words.next()?)?;
    // A timestamp in milliseconds may follow, and nothing else.
    if words.next().is_some_and(|stamp| stamp.parse::<i64>().is_err()) || words.next().is_some() {
        return None;
    }
    Some(Sample { name: name.to_owned(), labels, value })
}

/// `label="value",…}` and what is behind it.
fn labels(mut rest: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start();
        if let Some(behind) = rest.strip_prefix('}') {
            return Some((labels, behind));
        }
        let (name, behind) = rest.split_once('=')?;
        let name = name.trim();
        let (value, behind) = quoted(behind.trim_start())?;
        if !is_name(name) || labels.len() == LABELS_MAX {
            return None;
        }
        labels.push((name.to_owned(), value));
        rest = behind.trim_start();
        // The last label may have a comma as well.
        match rest.strip_prefix(',') {
            Some(behind) => rest = behind,
            None if rest.starts_with('}') => {}
            None => return None,
        }
    }
}

/// A string in quotes with its escapes `\\`, `\"` and `\n` undone, and what is behind it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let text = text.strip_prefix('"')?;
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                escaped @ ('\\' | '"') => escaped,
                _ => return None,
            }),
            c => value.push(c),
        }
        if value.len() > TEXT_MAX {
            return None;
        }
    }
    None
}

fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || matches!(b, b'_' | b':'));
    first && text.len() <= TEXT_MAX && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':'))
}

fn number(text: &str) -> Option<f64> {
    match text {
        "+Inf" => Some(f64::INFINITY),
        "-Inf" => Some(f64::NEG_INFINITY),
        "NaN" => Some(f64::NAN),
        text => text.parse().ok().filter(|number: &f64| number.is_finite()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(line: &str) -> Option<Sample> {
        let found = Exposition::parse(line.as_bytes());
        assert_eq!(found.samples.len() + found.skipped, 1, "{line}");
        found.samples.into_iter().next()
    }

    #[test]
    fn samples_are_read() {
        let sample = one("a_bucket{pipeline=\"x\", le=\"+Inf\",} 7 1700000000000").unwrap();
        assert_eq!((sample.name.as_str(), sample.value), ("a_bucket", 7.0));
        assert_eq!((sample.label("le"), sample.label("pipeline")), (Some("+Inf"), Some("x")));
        assert_eq!(one("a 1e-3").unwrap().value, 0.001);
        assert_eq!(one("a{} -Inf").unwrap().value, f64::NEG_INFINITY);
        assert!(one("a NaN").unwrap().value.is_nan());
        let escaped = one(r#"a{b="x\\y\"z\n, } ="} 1"#).unwrap();
        assert_eq!(escaped.label("b"), Some("x\\y\"z\n, } ="));
    }

    #[test]
    fn what_is_no_sample_is_counted() {
        for line in [
            "<html>",
            "a",
            "a b",
            "a{b=\"c\" 1",
            "a{b=\"c} 1",
            "a{b=c} 1",
            "a{b=\"\\x\"} 1",
            "a{b=\"c\"d=\"e\"} 1",
            "1a 1",
            "a 1 soon",
            "a 1 2 3",
            "a inf",
            "a{1=\"\"} 1",
        ] {
            assert_eq!(one(line), None, "{line}");
        }
        let text = "# HELP a b\n\n# TYPE a counter\na 1\r\nwhat?\n";
        let found = Exposition::parse(text.as_bytes());
        assert_eq!((found.samples.len(), found.skipped), (1, 1));
    }

    #[test]
    fn there_are_bounds() {
        let labels: String = (0..LABELS_MAX + 1).map(|n| format!("l{n}=\"\",")).collect();
        assert_eq!(one(&format!("a{{{labels}}} 1")), None);
        assert_eq!(one(&format!("a{{b=\"{}\"}} 1", "x".repeat(TEXT_MAX + 1))), None);
        let found = Exposition::parse("a 1\n".repeat(SAMPLES_MAX + 5).as_bytes());
        assert_eq!((found.samples.len(), found.skipped), (SAMPLES_MAX, 5));
    }

    #[test]
    fn our_own_metrics_are_read_whole() {
        let metrics = crate::metrics::Metrics::new("orders");
        metrics.recorded_to_confirm_seconds.observe(0.02);
        let text = metrics.encode();
        let found = Exposition::parse(text.as_bytes());
        let lines = text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!((found.samples.len(), found.skipped), (lines, 0));
        assert_eq!(found.named("statecast_recorded_to_confirm_seconds_bucket").count(), 16);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let found = Exposition::parse(&bytes);
            prop_assert!(found.samples.len() + found.skipped <= bytes.len());
        }

        /// Nearer to what is valid than arbitrary bytes.
        #[test]
        fn cut_and_changed_samples_are_read_without_a_panic(
            text in "([a-c]{1,2}(\\{[a-c]=\"[\\\\n\"é]{0,3}\"[,}]{0,2}){0,2} [0-9+IN.naf]{1,4} ?[0-9]{0,2}\n){0,9}",
            cut in 0usize..400,
        ) {
            let bytes = text.as_bytes();
            Exposition::parse(&bytes[..cut.min(bytes.len())]);
        }

        #[test]
        fn what_was_written_is_read(name in "[a-z_:][a-z0-9_:]{0,9}", value in ".{0,20}", number: i32) {
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            // Line ends other than \n are not escaped by the format.
            prop_assume!(!value.contains('\r'));
            let found = Exposition::parse(format!("{name}{{l=\"{escaped}\"}} {number}\n").as_bytes());
            let expected = Sample { name, labels: vec![("l".to_owned(), value)], value: f64::from(number) };
            prop_assert_eq!(found.samples, vec![expected]);
        }
    }
}
