package policy_test

import (
	"bytes"
	"context"
	"io"
	"mime/multipart"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/authz"
)

// crudeParts reads a form as servers do that look for boundaries anywhere, end lines at any LF, take the last disposition and in it the
// first that looks like a name.
func crudeParts(body string) (parts [][2]string) {
	names := regexp.MustCompile(`(?i)name\*?[0-9]*\s*=\s*(?:"([^"]*)"|([^;\s]*))`)
	for _, text := range strings.Split(body, "--b")[1:] {
		if strings.HasPrefix(text, "--") {
			break
		}
		head, content, _ := strings.Cut(strings.TrimPrefix(strings.ReplaceAll(text, "\r\n", "\n"), "\n"), "\n\n")
		name := ""
		for line := range strings.SplitSeq(head, "\n") {
			if found := names.FindStringSubmatch(line); found != nil && strings.HasPrefix(strings.ToLower(line), "content-disposition") {
				name = found[1] + found[2]
			}
		}
		parts = append(parts, [2]string{name, strings.TrimSuffix(content, "\n")})
	}
	return parts
}

// FuzzMultipartBody: what is taken as a multipart form has the same parts for the standard library, and for one who reads it crudely.
func FuzzMultipartBody(f *testing.F) {
	part := func(disposition, content string) string {
		return "--b\r\nContent-Disposition: " + disposition + "\r\n\r\n" + content + "\r\n"
	}
	for _, disposition := range []string{`form-data; name="a"`, `form-data; name="a"; name="b"`, `form-data; name="a"; name*=utf-8''b`, `form-data; filename="b"; name=a`,
		`form-data; name="a"; filename="\"; name="b"`, "form-data; name=\"a\"\r\nContent-Disposition: form-data; name=\"b\"", "form-data; name=a\r\nContent-Transfer-Encoding: quoted-printable"} {
		f.Add([]byte(part(disposition, "=61") + "--b--\r\n"))
	}
	f.Add([]byte("x\r\n" + part("form-data;name=a", "1\n--b\r\nContent-Disposition: form-data; name=c\r\n\r\n2") + part("form-data; name=a", "") + "--b--"))
	set := echo(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		r := &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Headers: map[string]string{"content-type": "multipart/form-data; boundary=b"}, RawBody: body}}}}
		d := set.Decide(context.Background(), wire(t, r))
		if d.Outcome != authz.Allowed || len(body) == 0 || bytes.Contains(bytes.ToLower(body), []byte("json")) {
			if d.Outcome != authz.Allowed && d.Outcome != authz.Refused && utf8.Valid(body) { // bytes of a file are no text to answer with
				t.Fatal(d)
			}
			return
		}
		text := func(b []byte) string { return strings.ToValidUTF8(string(b), "\ufffd") }
		want, crude := map[string]any{}, [][2]string{}
		for parts := multipart.NewReader(bytes.NewReader(body), "b"); ; {
			p, err := parts.NextRawPart()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("%q: %v", body, err)
			}
			content, err := io.ReadAll(p)
			if err != nil {
				t.Fatal(err)
			}
			list, _ := want[p.FormName()].([]any)
			want[p.FormName()] = append(list, strings.ToValidUTF8(string(content), "\ufffd"))
			crude = append(crude, [2]string{p.FormName(), strings.ReplaceAll(string(content), "\r\n", "\n")})
		}
		got := metadata(t, d)["input"].(map[string]any)["parsed_body"]
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q: %s", text(body), diff)
		}
		if again := crudeParts(string(body)); !slices.Equal(again, crude) {
			t.Errorf("%q reads as %q and %q", body, crude, again)
		}
	})
}
