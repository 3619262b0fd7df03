// Package strictyaml decodes configuration: unknown and repeated keys, anchors, tags and values of another type are mistakes, and
// all the mistakes of a file are named at once with file, line and column. Start with Decode; Documents is for files that hold
// several documents.
package strictyaml

import (
	"bytes"
	"fmt"
	"unicode/utf8"
)

// Document is one of a file's YAML documents.
type Document struct {
	Name string // the file
	Line int    // of the file where Data begins, from 1
	Data []byte // with its --- if it has one
}

// maxDocument bounds what is parsed at once.
const maxDocument = 1 << 20

// Documents splits a file at its markers. Documents that are empty or hold only comments are passed over, and what comes after
// one is not: YAML decoders tend to end there. A marker is --- or ... at the very beginning of a line, before a blank or the
// line's end, wherever that line stands: YAML 1.2 section 9.1 keeps such lines out of block scalars too.
func Documents(name string, data []byte) ([]Document, error) {
	data = bytes.ReplaceAll(bytes.TrimPrefix(data, []byte("\ufeff")), []byte("\r\n"), []byte("\n"))
	if m := checkText(name, data); len(m) > 0 {
		return nil, m.sorted()
	}
	s := splitter{name: name, start: 1}
	line := 1
	for text := range bytes.Lines(data) {
		s.add(line, text)
		line++
	}
	s.end(line)
	if len(s.mistakes) > 0 {
		return nil, s.mistakes.sorted()
	}
	return s.documents, nil
}

type splitter struct {
	name      string
	start     int // line where the document that is being read begins
	data      []byte
	documents []Document
	mistakes  Mistakes
}

func (s *splitter) add(line int, text []byte) {
	switch {
	case isMarker(text, "---"):
		s.end(line)
		s.data = append(s.data, text...)
	case isMarker(text, "..."):
		s.end(line + 1)
		if !isComment(text[3:]) {
			s.mistake(line, "nothing but a comment may stand after ...")
		}
	case text[0] == '%' && len(s.data) == 0, text[0] == '%' && onlyComments(s.data) && !isMarker(s.data, "---"):
		s.mistake(line, "directives are not taken")
	default:
		s.data = append(s.data, text...)
	}
}

// end closes the document that is being read; the next begins at that line.
func (s *splitter) end(next int) {
	if len(s.data) > maxDocument {
		s.mistake(s.start, fmt.Sprintf("document has %d bytes, more than %d", len(s.data), maxDocument))
	} else if !onlyComments(s.data) {
		s.documents = append(s.documents, Document{Name: s.name, Line: s.start, Data: s.data})
	}
	s.data, s.start = nil, next
}

func (s *splitter) mistake(line int, what string) {
	s.mistakes = append(s.mistakes, Mistake{File: s.name, Line: line, Col: 1, What: what})
}

func isMarker(line []byte, marker string) bool {
	rest, found := bytes.CutPrefix(line, []byte(marker))
	return found && (len(rest) == 0 || rest[0] == ' ' || rest[0] == '\t' || rest[0] == '\n')
}

func isComment(line []byte) bool {
	line = bytes.TrimSpace(line)
	return len(line) == 0 || line[0] == '#'
}

func onlyComments(data []byte) bool {
	if isMarker(data, "---") {
		data = data[3:]
	}
	for line := range bytes.Lines(data) {
		if !isComment(line) {
			return false
		}
	}
	return true
}

// checkText refuses what YAML calls not printable, before any of it reaches a parser or a terminal.
func checkText(name string, data []byte) Mistakes {
	line, lineStart := 1, 0
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			return Mistakes{{name, line, i - lineStart + 1, "text is not UTF-8"}}
		case r < 0x20 && r != '\t' && r != '\n', r >= 0x7f && r < 0xa0, r == '\ufeff', r == '\u2028', r == '\u2029':
			return Mistakes{{name, line, i - lineStart + 1, fmt.Sprintf("character %U may not stand here", r)}}
		case r == '\n':
			line, lineStart = line+1, i+1
		}
		i += size
	}
	return nil
}
