package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Lines is a file of JSON lines, 0600, appended to by one process and by one goroutine at a time.
type Lines struct {
	file     *os.File
	last     uint64
	rotation Rotation
	rotating error // of the last write
}

// OpenLines opens the file for appending, or makes it. What a crash left of a last, torn line is cut off.
func OpenLines(path string) (*Lines, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open records: %w", err)
	}
	l := &Lines{file: f}
	if err := l.mend(); err != nil {
		return nil, errors.Join(fmt.Errorf("open records %s: %w", path, err), f.Close())
	}
	return l, nil
}

// mend brings the file to its mode and to a whole last line, and reads where feeding stopped.
func (l *Lines) mend() error {
	if err := l.file.Chmod(0o600); err != nil { // whatever the umask, and whoever made it
		return err
	}
	info, err := l.file.Stat()
	if err != nil {
		return err
	}
	line, end, err := lastLine(l.file, info.Size())
	if err != nil {
		return err
	}
	if end < info.Size() {
		if err := l.file.Truncate(end); err != nil {
			return err
		}
	}
	var row Row
	if json.Unmarshal(line, &row) == nil { // a line that is no row holds no place to go on from
		l.last = row.ID
	}
	return nil
}

// lastLine finds the last line that ends in a line feed, and where it ends.
func lastLine(f io.ReaderAt, size int64) (line []byte, end int64, err error) {
	const step = 64 << 10
	var tail []byte
	for from := size; ; {
		if last := bytes.LastIndexByte(tail, '\n'); last >= 0 {
			if first := bytes.LastIndexByte(tail[:last], '\n'); first >= 0 || from == 0 {
				return tail[first+1 : last], from + int64(last) + 1, nil
			}
		}
		if from == 0 {
			return nil, 0, nil
		}
		n := min(step, from)
		from -= n
		chunk := make([]byte, n, int(n)+len(tail))
		if _, err := f.ReadAt(chunk, from); err != nil {
			return nil, 0, err
		}
		tail = append(chunk, tail...)
	}
}

// Last is the ID of the last row in the file, 0 where there is none: feeding goes on after it.
func (l *Lines) Last() uint64 { return l.last }

// Feed appends rows and syncs the file. After an error none of these rows is in the file.
func (l *Lines) Feed(rows []Row) error {
	if len(rows) == 0 {
		return nil
	}
	var out bytes.Buffer
	for _, row := range rows {
		if err := appendLine(&out, row); err != nil {
			return fmt.Errorf("record %d: %w", row.ID, err)
		}
	}
	err := l.append(out.Bytes(), true)
	if err == nil {
		l.last = rows[len(rows)-1].ID
	}
	return err
}

// Write appends whole lines; after an error none of them is in the file. No line is spread over two files.
func (l *Lines) Write(p []byte) (int, error) {
	l.rotating = l.rotateFor(len(p)) // an error here does not keep the lines from the file
	if err := l.append(p, l.rotation.Sync); err != nil {
		return 0, errors.Join(err, l.rotating)
	}
	return len(p), nil
}

// Unrotated says why the last write found the file too large and could not begin a new one; nil where it could, or need not. It is
// for whoever writes.
func (l *Lines) Unrotated() error { return l.rotating }

// append takes back what it wrote where it could not write all of it, so that a full disk leaves no torn line.
func (l *Lines) append(p []byte, sync bool) error {
	info, err := l.file.Stat() // not remembered: the file may have been cut by whoever rotates it
	if err != nil {
		return fmt.Errorf("write records: %w", err)
	}
	if _, err = l.file.Write(p); err == nil && sync {
		err = l.file.Sync()
	}
	if err != nil {
		return fmt.Errorf("write records: %w", errors.Join(err, l.file.Truncate(info.Size())))
	}
	return nil
}

// Close syncs and closes the file.
func (l *Lines) Close() error { return errors.Join(l.file.Sync(), l.file.Close()) }

// appendLine writes v as one line. Nothing in it can steer a terminal or show another text than it is: encoding/json escapes the
// control characters below space, and what it lets through is escaped here. Outside strings JSON has nothing of that.
func appendLine(out *bytes.Buffer, v any) error {
	start := out.Len()
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		out.Truncate(start)
		return err
	}
	if line := out.Bytes()[start:]; slices.IndexFunc(line, func(b byte) bool { return b >= 0x7f }) >= 0 {
		line = bytes.Clone(line)
		out.Truncate(start)
		escape(out, line)
	}
	return nil
}

// escape writes a line of JSON of the same value, in UTF-8.
func escape(out *bytes.Buffer, line []byte) {
	for len(line) > 0 {
		if line[0] < 0x7f {
			out.WriteByte(line[0])
			line = line[1:]
			continue
		}
		r, size := utf8.DecodeRune(line)
		switch {
		case !Misleads(r) && (r != utf8.RuneError || size > 1):
			out.Write(line[:size])
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(out, `\u%04x\u%04x`, high, low)
		default: // of bytes that are no UTF-8 every reader of JSON makes U+FFFD
			fmt.Fprintf(out, `\u%04x`, r)
		}
		line = line[size:]
	}
}

// Misleads says that a character is a control, turns the direction of text, or cannot be seen: a terminal would show another text than there is.
func Misleads(r rune) bool {
	return r >= 0x7f && unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}
