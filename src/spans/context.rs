//! W3C Trace Context: reads a `traceparent`, and decides which events are traced. Pure and total.
//!
//! <https://www.w3.org/TR/trace-context/#traceparent-header>: version, trace id, parent id and flags in lower-case
//! hexadecimal. What breaks the rules counts as none, as that recommendation asks for.

/// Bytes of `00-<32>-<16>-<2>`.
const LENGTH: usize = 55;
/// The flag `sampled`.
const SAMPLED: u8 = 1;
/// Random bits of a trace id that a share is taken by: the last 56.
const RANDOM_BITS: u32 = 56;

/// The context that an event was written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Context {
    /// Not all zero.
    pub(super) trace_id: [u8; 16],
    /// The span that wrote the event; not all zero.
    pub(super) span_id: [u8; 8],
    /// Trace flags.
    pub(super) flags: u8,
}

impl Context {
    /// The context in a `traceparent`, if it is a valid one.
    ///
    /// Of a version above 00 what is known is read, and more may follow behind a dash.
    pub(super) fn parse(text: &str) -> Option<Context> {
        let bytes = text.as_bytes();
        let (known, rest) = bytes.split_at_checked(LENGTH)?;
        let [version] = hex::<1>(known.get(..2)?)?;
        let well_ended = if version == 0 { rest.is_empty() } else { rest.first().is_none_or(|b| *b == b'-') };
        let dashes = [2, 35, 52].into_iter().all(|at| known.get(at) == Some(&b'-'));
        if version == 0xff || !well_ended || !dashes {
            return None;
        }
        let context = Context {
            trace_id: hex(known.get(3..35)?)?,
            span_id: hex(known.get(36..52)?)?,
            flags: hex::<1>(known.get(53..55)?)?[0],
        };
        (context.trace_id != [0; 16] && context.span_id != [0; 8]).then_some(context)
    }

    /// Whoever wrote the event is traced.
    pub(super) fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }
}

/// `N` bytes of lower-case hexadecimal.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = (digit(pair[0])? << 4) | digit(pair[1])?;
    }
    Some(bytes)
}

/// Which share of events is traced, by their trace ids: whoever else takes the same share takes the same traces, and a repeat
/// of an event is decided as the event was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    /// Ids whose last 56 bits are at or above this are taken.
    threshold: u64,
}

impl Share {
    /// `share` from 0 to 1.
    pub(super) fn new(share: f64) -> Share {
        let all = (1_u64 << RANDOM_BITS) as f64;
        Share { threshold: ((1.0 - share.clamp(0.0, 1.0)) * all) as u64 }
    }

    /// Is an event with this trace id traced?
    pub(super) fn takes(self, trace_id: &[u8; 16]) -> bool {
        let id = u128::from_be_bytes(*trace_id) as u64;
        id & ((1 << RANDOM_BITS) - 1) >= self.threshold
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_valid_one_is_read() {
        let context = Context::parse(VALID).unwrap();
        assert_eq!(u128::from_be_bytes(context.trace_id), 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!(u64::from_be_bytes(context.span_id), 0xb7ad_6b71_6920_3331);
        assert!(context.is_sampled());
        assert!(!Context::parse(&VALID.replace("-01", "-00")).unwrap().is_sampled());
        assert!(Context::parse(&VALID.replace("-01", "-03")).unwrap().is_sampled());
    }

    #[test]
    fn a_later_version_may_say_more() {
        let later = VALID.replacen("00-", "cc-", 1);
        assert!(Context::parse(&later).is_some());
        assert!(Context::parse(&format!("{later}-what-the-future-brings")).is_some());
        assert!(Context::parse(&format!("{later}.")).is_none());
        assert!(Context::parse(&format!("{VALID}-x")).is_none(), "version 00 ends there");
        assert!(Context::parse(&VALID.replacen("00-", "ff-", 1)).is_none());
    }

    #[test]
    fn what_breaks_the_rules_is_none() {
        for wrong in [
            "",
            "00-a-b-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319g-b7ad6b7169203331-01",
            "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "0x-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
            " 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333\u{e4}-01",
        ] {
            assert!(Context::parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn shares_are_exact_at_their_ends_and_about_right_between() {
        let mut id = [0xff; 16];
        assert!(!Share::new(0.0).takes(&id) && Share::new(1.0).takes(&id));
        id[9..].fill(0);
        assert!(Share::new(1.0).takes(&id) && !Share::new(0.999).takes(&id));
        let mut random = fastrand::Rng::with_seed(7);
        let share = Share::new(0.25);
        let taken = (0..100_000).filter(|_| share.takes(&random.u128(..).to_be_bytes())).count();
        assert!((24_000..26_000).contains(&taken), "{taken}");
        assert!(Share::new(f64::NAN).threshold <= 1 << RANDOM_BITS);
    }

    proptest! {
        #[test]
        fn never_panics(text in "(?s).{0,80}") {
            let _ = Context::parse(&text);
        }

        #[test]
        fn near_misses_never_panic(text in "[0-9a-fA-F\u{e4}-]{50,60}") {
            let _ = Context::parse(&text);
        }

        #[test]
        fn whatever_is_written_by_the_rules_is_read_back(
            trace in 1_u128.., span in 1_u64.., flags: u8, version in 0_u8..0xff
        ) {
            let text = format!("{version:02x}-{trace:032x}-{span:016x}-{flags:02x}");
            let (trace_id, span_id) = (trace.to_be_bytes(), span.to_be_bytes());
            prop_assert_eq!(Context::parse(&text), Some(Context { trace_id, span_id, flags }));
        }

        #[test]
        fn a_larger_share_takes_what_a_smaller_one_takes(id: [u8; 16], a in 0.0..=1.0, b in 0.0..=1.0) {
            let (small, large) = if a < b { (a, b) } else { (b, a) };
            prop_assert!(!Share::new(small).takes(&id) || Share::new(large).takes(&id));
        }
    }
}
