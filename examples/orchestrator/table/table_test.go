package table

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

type service struct{ name, state, err string }

var columns = []Column[service]{
	{"NAME", func(s service) string { return s.name }},
	{"CURRENT STATE", func(s service) string { return s.state }},
	{"ERROR", func(s service) string { return s.err }},
}

var rows = []service{
	{"web.1", "running", ""},
	{"long-name.12", "failed", "exit <1>\nat\x1b[2J once"},
	{"größe.1", "running", "-"},
}

func TestTextIsAligned(t *testing.T) {
	for _, format := range []string{"", Text} {
		var b strings.Builder
		require.NoError(t, Print(&b, format, columns, rows))
		require.Equal(t, ""+
			"NAME           CURRENT STATE   ERROR\n"+
			"web.1          running\n"+
			"long-name.12   failed          exit <1> at [2J once\n"+
			"größe.1        running         -\n", b.String())
	}
}

func TestNoRows(t *testing.T) {
	var b strings.Builder
	require.NoError(t, Print(&b, Text, columns, nil))
	require.Equal(t, "NAME   CURRENT STATE   ERROR\n", b.String())
	b.Reset()
	require.NoError(t, Print(&b, JSON, columns, nil))
	require.Empty(t, b.String())
}

func TestJSONIsOneObjectPerRow(t *testing.T) {
	var b strings.Builder
	require.NoError(t, Print(&b, JSON, columns, rows[:2]))
	require.Equal(t, `{"current_state":"running","error":"","name":"web.1"}
{"current_state":"failed","error":"exit <1>\nat\u001b[2J once","name":"long-name.12"}
`, b.String())
}

func TestUnknownFormat(t *testing.T) {
	var b strings.Builder
	require.EqualError(t, Print(&b, "yaml", columns, rows), `format "yaml": want table or json`)
	require.Empty(t, b.String())
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("closed pipe") }

func TestWriteErrorsAreReturned(t *testing.T) {
	for _, format := range []string{Text, JSON} {
		require.ErrorContains(t, Print(broken{}, format, columns, rows), "closed pipe", format)
	}
}
