// Appends to a run until it is told to stop: `append PACE URL`, as append.py does, with Go's net/http.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
	"time"
)

func main() {
	pace, url := os.Args[1], os.Args[2]
	line := []byte("{\"data\":\"a word and another \"}\n")
	if pace == "fast" {
		line = []byte(strings.Repeat(string(line), 500))
	}
	reader, writer := io.Pipe()
	go func() {
		for end := time.Now().Add(15 * time.Second); time.Now().Before(end); {
			if _, err := writer.Write(line); err != nil {
				return
			}
			if pace == "slow" {
				time.Sleep(20 * time.Millisecond)
			}
		}
		log.Fatal("nobody has told it to stop")
	}()
	response, err := http.Post(url, "application/x-ndjson", reader)
	if err != nil {
		log.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(response.StatusCode, string(body))
}
