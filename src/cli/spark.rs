//! Small pictures made of letters: a row of numbers in one word.

/// The letters, from nothing to the most.
const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// A letter for each number, the highest for the largest of them.
pub fn line(values: &[f64]) -> String {
    let most = values.iter().copied().fold(0.0, f64::max);
    let letter = |value: &f64| {
        let reached = |step: &(u32, char)| value * 8.0 > most * f64::from(step.0);
        (0..).zip(HEIGHTS).filter(reached).last().map_or(HEIGHTS[0], |(_, letter)| letter)
    };
    values.iter().map(letter).collect()
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn numbers_in_a_word() {
        assert_eq!(line(&[]), "");
        assert_eq!(line(&[0.0, 0.0]), "▁▁");
        assert_eq!(line(&[0.0, 1.0, 4.0, 7.9, 8.0]), "▁▁▄██");
        assert_eq!(line(&[f64::NAN, 1.0]), "▁█");
    }
}
