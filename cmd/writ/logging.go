package main

import (
	"io"
	"log/slog"
	"strings"
)

// level is the configured level, info where none is named.
func (c logConfig) level() (slog.Level, error) {
	var level slog.Level
	name := c.Level
	orDefault(&name, "info")
	err := level.UnmarshalText([]byte(strings.ToUpper(name)))
	return level, err
}

// logger writes to w as configured.
func (c logConfig) logger(w io.Writer) *slog.Logger {
	level, err := c.level()
	if err != nil {
		level = slog.LevelInfo
	}
	options := &slog.HandlerOptions{Level: level}
	if c.Format == "text" {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}
