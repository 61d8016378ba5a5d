// Go's net/http. The form is "PostForm", "multipart", "file" (the text is a file of a multipart form) or "json".
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
)

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func send(form, address string, fields map[string]string) (*http.Response, error) {
	var body bytes.Buffer
	switch form {
	case "PostForm":
		values := url.Values{}
		for name, value := range fields {
			values.Set(name, value)
		}
		return http.PostForm(address, values)
	case "json":
		check(json.NewEncoder(&body).Encode(fields))
		return http.Post(address, "application/json", &body)
	default:
		writer := multipart.NewWriter(&body)
		for name, value := range fields {
			if form == "file" && name == "data" {
				part, err := writer.CreateFormFile(name, "text.txt")
				check(err)
				_, err = io.WriteString(part, value)
				check(err)
			} else {
				check(writer.WriteField(name, value))
			}
		}
		check(writer.Close())
		return http.Post(address, writer.FormDataContentType(), &body)
	}
}

func post(form, address string, fields map[string]string) []byte {
	response, err := send(form, address, fields)
	check(err)
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	check(err)
	if response.StatusCode != http.StatusOK {
		log.Fatalf("status %d: %s", response.StatusCode, answer)
	}
	return answer
}

func main() {
	address, form, channel, kind := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	token := post(form, address+"/token/", map[string]string{"userId": "alex", "channel": channel})
	if form == "json" {
		var answer struct{ Token string }
		check(json.Unmarshal(token, &answer))
		token = []byte(answer.Token)
	}
	fmt.Printf("%s\n", token)
	for _, file := range os.Args[5:] {
		text, err := os.ReadFile(file)
		check(err)
		fields := map[string]string{"userId": "*", "channel": channel, "event": kind, "data": string(text)}
		post(form, address+"/emit/", fields)
	}
}
