//! Formats numbers and lines like `TextLoggerHook` of MMDetection (MMCV).

/// `1.019e-04`: three decimals and an exponent of at least two digits.
pub(super) fn scientific(value: f64) -> String {
    let text = format!("{value:.3e}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => {
            let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
            format!("{mantissa}e{sign}{digits:0>2}")
        }
        None => text,
    }
}

/// `0:02:05`, or `1 day, 0:02:05`: whole seconds as Python prints a `timedelta`.
pub(super) fn duration(seconds: f64) -> String {
    let seconds = if seconds.is_finite() { seconds.max(0.0) as u64 } else { 0 };
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let clock = format!("{}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60);
    match days {
        0 => clock,
        1 => format!("1 day, {clock}"),
        _ => format!("{days} days, {clock}"),
    }
}

/// Rounds to five decimals, half to even, as in MMDetection's JSON lines.
pub(super) fn rounded(value: f64) -> f64 {
    format!("{value:.5}").parse().unwrap_or(value)
}

/// Rounds to five significant digits: five decimals would round the last rates of a schedule to 0.
pub(super) fn rounded_rate(value: f64) -> f64 {
    format!("{value:.4e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_formatted_as_in_python() {
        assert_eq!(scientific(1.019e-4), "1.019e-04");
        assert_eq!(scientific(0.0), "0.000e+00");
        assert_eq!(scientific(2e-120), "2.000e-120");
        assert_eq!(scientific(12345.0), "1.234e+04");
        assert_eq!(duration(39.9), "0:00:39");
        assert_eq!(duration(3725.0), "1:02:05");
        assert_eq!(duration(90_061.0), "1 day, 1:01:01");
        assert_eq!(duration(200_000.0), "2 days, 7:33:20");
        assert_eq!(duration(f64::NAN), "0:00:00");
        assert_eq!(rounded(0.694_666), 0.69467);
        assert_eq!(rounded_rate(2.000_04e-6), 2e-6);
    }
}
