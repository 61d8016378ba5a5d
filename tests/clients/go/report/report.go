// Package report has what all programs share: the arguments, and the lines for the runner.
package report

import (
	"encoding/json"
	"os"
	"strconv"
	"sync"
)

// URL is the stream to listen to.
var URL = os.Args[1]

var mu sync.Mutex

// LineBytes is what to raise a library's limit on the length of an event to, or 0 to leave it as it is.
func LineBytes() int {
	n, _ := strconv.Atoi(os.Getenv("LINE_BYTES"))
	return n
}

func line(value map[string]any) {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if _, err := os.Stdout.Write(append(text, '\n')); err != nil {
		panic(err)
	}
}

// Message reports an event. An empty type is that of an unnamed event.
func Message(kind, id, data string) {
	if kind == "" {
		kind = "message"
	}
	line(map[string]any{"type": kind, "id": id, "data": data})
}

// Opened reports that the library is connected.
func Opened() { line(map[string]any{"open": true}) }

// Error reports an error of the library.
func Error(err error) { line(map[string]any{"error": err.Error()}) }

// Ended reports that the library has finished, and ends the program.
func Ended(err error) {
	why := "finished"
	if err != nil {
		why = err.Error()
	}
	line(map[string]any{"ended": why})
	os.Exit(0)
}
