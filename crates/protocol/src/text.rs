//! Text that both programs write.

/// A number and its noun: "1 image", "2 images", "0 classes".
pub fn count(number: usize, one: &str) -> String {
    if number == 1 {
        return format!("1 {one}");
    }
    match one {
        _ if one.ends_with(['s', 'x']) => format!("{number} {one}es"),
        _ if one.ends_with('y') => format!("{number} {}ies", &one[..one.len() - 1]),
        _ => format!("{number} {one}s"),
    }
}

/// One word for a shell, in quotes if it needs them.
pub fn shell_word(text: &str) -> String {
    let is_plain = |letter: char| letter.is_alphanumeric() || "/._-+,:=@%".contains(letter);
    let plain = !text.is_empty() && text.chars().all(is_plain);
    if plain { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// A line of the text log as in MMDetection: `2026-11-25 01:41:17,570 - fnet - INFO - message`.
pub fn log_line(time: &jiff::Zoned, name: &str, level: &str, message: &str) -> String {
    let milliseconds = time.subsec_nanosecond() / 1_000_000;
    format!("{},{milliseconds:03} - {name} - {level} - {message}\n", time.strftime("%Y-%m-%d %H:%M:%S"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nouns_are_singular_or_plural() {
        for (number, one, text) in [
            (1, "image", "1 image"),
            (0, "image", "0 images"),
            (2, "class", "2 classes"),
            (3, "category", "3 categories"),
        ] {
            assert_eq!(count(number, one), text);
        }
    }

    #[test]
    fn a_line_has_time_name_level_and_message() {
        let time: jiff::Zoned = "2026-11-25T01:41:07.0705[UTC]".parse().unwrap();
        assert_eq!(log_line(&time, "fnet", "WARNING", "x"), "2026-11-25 01:41:07,070 - fnet - WARNING - x\n");
    }
}
