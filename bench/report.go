package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// samples are durations of one thing, as they came.
type samples []time.Duration

// at gives a quantile, 0 to 1.
func (s samples) at(q float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func (s samples) row(what, must string) []string {
	show := func(d time.Duration) string { return d.Round(10 * time.Microsecond).String() }
	return []string{what, fmt.Sprint(len(s)), show(s.at(0.5)), show(s.at(0.99)), show(s.at(1)), must}
}

// spread shows the median of several rounds with the least and the most.
func spread(rounds []float64, format string) string {
	sorted := slices.Sorted(slices.Values(rounds))
	return fmt.Sprintf(format+" ("+format+" to "+format+")", sorted[len(sorted)/2], sorted[0], sorted[len(sorted)-1])
}

// table prints Markdown.
func table(title string, head []string, rows [][]string) {
	fmt.Printf("\n**%s**\n\n| %s |\n|%s\n", title, strings.Join(head, " | "), strings.Repeat("---|", len(head)))
	for _, row := range rows {
		fmt.Printf("| %s |\n", strings.Join(row, " | "))
	}
}

// machine names cores and processor.
func machine() string {
	processor := "processor unknown"
	if f, err := os.Open("/proc/cpuinfo"); err == nil {
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if name, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
				processor = strings.TrimSpace(value)
			}
		}
	}
	return fmt.Sprintf("%d cores, %s, %s", runtime.NumCPU(), processor, runtime.Version())
}
