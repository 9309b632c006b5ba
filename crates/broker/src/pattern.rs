//! Patterns of routing keys, as in a binding to a topic exchange.

use std::str::FromStr;

/// A pattern of words between dots, where `*` stands for one word and `#` for any number of words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicPattern(Vec<String>);

impl TopicPattern {
    /// Whether a routing key matches the pattern.
    pub fn matches(&self, routing_key: &str) -> bool {
        let words: Vec<&str> = routing_key.split('.').collect();
        // `matched[n]`: whether the part of the pattern so far matches the first n words.
        let mut matched = vec![false; words.len() + 1];
        matched[0] = true;
        for part in &self.0 {
            if part == "#" {
                let first = matched.iter().position(|it| *it).unwrap_or(matched.len());
                matched[first..].fill(true);
            } else {
                for (n, word) in words.iter().enumerate().rev() {
                    matched[n + 1] = matched[n] && (part == "*" || part == word);
                }
                matched[0] = false;
            }
        }
        matched[words.len()]
    }
}

impl FromStr for TopicPattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let words: Vec<String> = text.split('.').map(str::to_owned).collect();
        let wild = |word: &String| word.contains(['*', '#']) && word.len() > 1;
        if text.is_empty() || text.len() > 255 || words.iter().any(wild) {
            Err(InvalidPattern)
        } else {
            Ok(Self(words))
        }
    }
}

/// The text is not a pattern of routing keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected words between dots, where `*` and `#` stand alone, for example order.#")]
pub struct InvalidPattern;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition as code. It takes exponential time if there are many `#`.
    fn matches(pattern: &[String], words: &[&str]) -> bool {
        match (pattern.split_first(), words.split_first()) {
            (None, None) => true,
            (Some((first, rest)), _) if first == "#" => {
                (0..=words.len()).any(|skipped| matches(rest, &words[skipped..]))
            }
            (Some((first, pattern)), Some((word, words))) => {
                (first == "*" || first == word) && matches(pattern, words)
            }
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn a_pattern_matches_as_defined(
            pattern in "[ab*#](\\.[ab*#]){0,5}",
            key in "[ab]?(\\.[ab]?){0,6}",
        ) {
            let parsed: TopicPattern = pattern.parse().unwrap();
            let words: Vec<&str> = key.split('.').collect();
            prop_assert_eq!(parsed.matches(&key), matches(&parsed.0, &words));
        }
    }

    #[test]
    fn many_wildcards_take_no_time() {
        let pattern: TopicPattern = ["#"; 100].join(".a.")[..255].parse().unwrap();
        assert!(!pattern.matches(&["b"; 100].join(".")));
    }

    /// Examples from RabbitMQ's tutorial on topics, and edge cases.
    #[test]
    fn a_pattern_matches_as_in_the_broker() {
        for (pattern, key, expected) in [
            ("#", "order.OrderPlaced", true),
            ("#", "", true),
            ("order.#", "order", true),
            ("order.#", "order.a.b", true),
            ("order.*", "order.a", true),
            ("order.*", "order", false),
            ("order.*", "order.a.b", false),
            ("*.orange.*", "quick.orange.rabbit", true),
            ("*.*.rabbit", "quick.orange.male.rabbit", false),
            ("lazy.#", "lazy.orange.male.rabbit", true),
            ("#.b.#", "a.a.b", true),
            ("#.b.#", "a.a.c", false),
            ("order.a", "order.a", true),
            ("order.a", "order.b", false),
        ] {
            let parsed: TopicPattern = pattern.parse().unwrap();
            assert_eq!(parsed.matches(key), expected, "{pattern} {key}");
        }
        for wrong in ["", "order*", "a.#b"] {
            assert_eq!(wrong.parse::<TopicPattern>(), Err(InvalidPattern), "{wrong}");
        }
    }
}
